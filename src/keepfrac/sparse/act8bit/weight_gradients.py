"""Weight gradients: which rows (tokens) form them, which tensors want one, and their sums.

A linear layer's weight gradient is a sum over tokens, dW = sum_t g_t x_t^T. In the backward pass the norms ||g_t|| are
known, which they are not in the forward pass, and each rule takes `budget` of the terms:

    wta     exact for the largest, sampled for the rest: a token is kept with probability pi_t = min(1, ||g_t|| / tau),
            where tau makes the pi_t add up to the budget, and its term is divided by pi_t. Unbiased; the winners-take-
            all split of WTA-CRS (Liu et al. 2023, arXiv 2305.15265, eq. 6) with systematic sampling of the losers.
    grad    the largest alone, unscaled. The best cosine to the dense gradient, and biased: it trains too slowly on
            some tasks.
    random  uniform among the tokens whose gradient is not zero, scaled by their number / budget. Unbiased.

Tokens whose gradient is zero are never chosen, and where no more than `budget` are left all are taken, which is exact.
The gradients of biases go over all rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from keepfrac.adapters.function import unravel_positions
from keepfrac.sparse.act8bit.linears import FusedLinear, LowRankUpdate, UpdateLayout
from keepfrac.tensors.rng import num_certain, systematic

# below this share of zero rows, gathering the others costs more than leaving them out saves
WORTH_SKIPPING = 0.05


@dataclass(frozen=True)
class Choice:
    """The chosen rows, ascending, and the factor of each. `index` None: all rows; `weight` None: all factors 1."""

    index: Tensor | None
    weight: Tensor | None

    def count(self, total: int) -> int:
        """Returns how many rows these are of `total`."""
        return total if self.index is None else self.index.numel()


ALL = Choice(None, None)


def nonzero_rows(norms: Tensor) -> Tensor:
    """Returns the rows that count, ascending (int64). A NaN is not zero: it must reach the weights and be seen."""
    return torch.nonzero(norms).squeeze(1)


def live_rows(norms: Tensor, skip: bool) -> Tensor | None:
    """Returns the rows whose gradient is not zero, or None where all rows are to be worked on."""
    if not skip:
        return None
    live = nonzero_rows(norms)
    return live if len(live) < (1 - WORTH_SKIPPING) * len(norms) else None


def gather(x: Tensor, index: Tensor | slice | None) -> Tensor:
    """Returns the rows `index` of x; None: x itself."""
    if index is None:
        return x
    return x[index] if isinstance(index, slice) else x.index_select(0, index)


def _uniform(count: int, seed: int) -> Tensor:
    """Returns `count` numbers in [0, 1) that depend on the seed alone (on the CPU; float64)."""
    return torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _wta(norms: Tensor, budget: int, seed: int) -> tuple[Tensor, Tensor | None]:
    size, order = norms.double().sort(descending=True)
    left = size.flip(0).cumsum(0).flip(0)
    certain = num_certain(size, left, budget)
    sampled = budget - certain
    if sampled == 0:
        return order[:certain], None
    tail, total = size[certain:], left[certain]
    at = systematic(tail, total, count=sampled, start=_uniform(1, seed).to(size.device))
    weight = torch.cat([size.new_ones(certain), total / (sampled * tail[at])])
    return torch.cat([order[:certain], order[certain + at]]), weight


def _grad(norms: Tensor, budget: int, seed: int) -> tuple[Tensor, None]:
    return norms.topk(budget, sorted=False).indices, None


def _random(norms: Tensor, budget: int, seed: int) -> tuple[Tensor, Tensor]:
    index = _uniform(len(norms), seed).topk(budget, sorted=False).indices.to(norms.device)
    return index, torch.full((budget,), len(norms) / budget, device=norms.device)


RULES: dict[str, Callable[[Tensor, int, int], tuple[Tensor, Tensor | None]]] = {
    "wta": _wta,
    "grad": _grad,
    "random": _random,
}


def choose_rows(norms: Tensor, budget: int, rule: str, seed: int) -> Choice:
    """Chooses the rows of one weight gradient.

    Args:
        norms: (rows,), the L2 norm of each token's gradient row.
        budget: how many rows at most.
        rule: a key of RULES.
        seed: what a sampling rule draws from.

    Returns:
        The rows, at most `budget` of them. All rows where a norm is not finite: it must reach the weights.
    """
    if budget >= len(norms) or not torch.isfinite(norms.sum()):
        return ALL
    live = nonzero_rows(norms)
    if len(live) <= budget:
        return Choice(live, None)
    index, weight = RULES[rule](norms[live], budget, seed)
    index, order = live[index].sort()
    return Choice(index, None if weight is None else weight[order].to(norms.dtype))


def wants_rows(wanted: Sequence[bool], layouts: Sequence[UpdateLayout]) -> bool:
    """Returns whether a gradient is a sum over rows of g x^T: any but those of biases.

    Args:
        wanted: of `LinearSpec.tensors`, one after the other: whether it wants a gradient.
        layouts: of the linears.
    """
    sizes = [2 + 4 * len(layout) for layout in layouts]
    return any(
        wanted[at + index]
        for at, size in zip(accumulate([0, *sizes]), sizes, strict=False)
        for index in range(size)
        if index != 1
    )


@dataclass(frozen=True)
class NeedsGrad:
    """What of a block wants a gradient: only what someone learns from is computed, and stored for that.

    Args:
        into: of the tensors of the first linears, whether each does.
        back: of those of the last linear.
        gates: whether the factors of the last linear's columns do.
        layouts: of the linears.
    """

    into: tuple[bool, ...]
    back: tuple[bool, ...]
    gates: bool
    layouts: Sequence[UpdateLayout]

    # arguments of a block before the linears' tensors; the index of the gates among them
    GIVEN, GATES = 15, 8

    @classmethod
    def of(cls, needs_input_grad: Sequence[bool], layouts: Sequence[UpdateLayout]) -> "NeedsGrad":
        """Reads those of a call."""
        tensors, back = tuple(needs_input_grad[cls.GIVEN :]), 2 + 4 * len(layouts[-1])
        return cls(into=tensors[:-back], back=tensors[-back:], gates=needs_input_grad[cls.GATES], layouts=layouts)

    @property
    def first_input(self) -> bool:
        """Whether the first linears' input has to be there."""
        return wants_rows(self.into, self.layouts[:-1])

    @property
    def last(self) -> bool:
        """Whether the last linear learns anything that is a sum over rows of g x^T."""
        return wants_rows(self.back, self.layouts[-1:])

    @property
    def last_input(self) -> bool:
        """Whether the last linear's input has to be there."""
        return self.last or self.gates


class Gradients:
    """The gradients of a fused linear's tensors, summed up piece by piece.

    Args:
        linears: them.
        wanted: of their `LinearSpec.tensors`, whether each wants a gradient.
    """

    def __init__(self, linears: FusedLinear, wanted: Sequence[bool]) -> None:
        self.fused = linears
        tensors = [tensor for one in linears.linears for tensor in one.tensors()]
        at = list(accumulate([0, *(len(one.tensors()) for one in linears.linears)]))[:-1]
        self.weights, self.biases = at, [index + 1 for index in at]
        self.whole: Tensor | None = None
        self.totals: list[Tensor | None] = [None] * len(tensors)
        if len(at) > 1 and all(wanted[index] for index in at):  # one product for all
            like = linears.linears[0].weight
            self.whole = like.new_zeros(linears.weight.shape)
            for index, columns in zip(at, linears.columns, strict=True):
                self.totals[index] = self.whole[columns]
        for index, tensor in enumerate(tensors):
            if wanted[index] and self.totals[index] is None and tensor is not None:
                self.totals[index] = torch.zeros_like(tensor)

    @property
    def wants_rows(self) -> bool:
        """Whether any of them is a sum over rows of g x^T."""
        return any(one is not None for index, one in enumerate(self.totals) if index not in self.biases)

    def add(self, g: Tensor, x: Tensor) -> None:
        """Adds the rows' terms: g (rows, outputs of all) and x (rows, inputs), one of them times their factors."""
        if self.whole is not None:
            add_outer(self.whole, g, x)
        for index, columns in zip(self.weights, self.fused.columns, strict=True):
            total = self.totals[index]
            if self.whole is None and total is not None:
                add_outer(total, g[:, columns], x)
        counts = [len(one.updates) for one in self.fused.linears]
        updates = [index + 2 + 4 * i for index, n in zip(self.weights, counts, strict=True) for i in range(n)]
        for index, (columns, one) in zip(updates, self.fused.updates, strict=True):
            self._add_update(index, g[:, columns], x, update=one)

    def _add_update(self, index: int, g: Tensor, x: Tensor, *, update: LowRankUpdate) -> None:
        d_u, d_v, d_values = self.totals[index : index + 3]
        compute = self.fused.compute
        if d_u is not None:
            add_outer(d_u, g, (x @ update.v.to(compute).t()).mul_(update.scale))
        if d_v is not None:
            add_outer(d_v, (g @ update.u.to(compute)).mul_(update.scale), x)
        if d_values is not None and update.positions is not None:
            into, out_of = unravel_positions(update.positions, x.shape[1])
            d_values.add_((g[:, into] * x[:, out_of]).sum(0, dtype=d_values.dtype), alpha=update.scale)

    def add_biases(self, g: Tensor) -> None:
        """Adds the sums over all rows of g (rows, outputs of all)."""
        totals = [self.totals[index] for index in self.biases]
        if all(total is None for total in totals):
            return
        dtype = next(total.dtype for total in totals if total is not None)
        sums = _column_sums(g, dtype)
        for total, columns in zip(totals, self.fused.columns, strict=True):
            if total is not None:
                total += sums[columns]


def add_outer(total: Tensor, g: Tensor, x: Tensor) -> None:
    """Adds g^T x to total, for g (rows, out) and x (rows, in)."""
    if total.dtype == g.dtype:
        total.addmm_(g.t(), x)
    else:
        total.add_(g.t() @ x)


def _column_sums(g: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns the sum over rows, a bias's gradient, accumulated in `dtype`; (width,)."""
    if g.dtype == dtype and g.device.type == "cpu":
        return torch.mv(g.t(), g.new_ones(len(g)))  # several times faster than sum(0) on a CPU
    return g.sum(0, dtype=dtype)
