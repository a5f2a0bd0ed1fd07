"""Which rows (tokens) form a weight gradient, chosen in the backward pass by the gradient that has arrived.

A linear layer's weight gradient is a sum over tokens, dW = sum_t g_t x_t^T. Here the norms ||g_t|| are known, which
they are not in the forward pass, and each rule takes `budget` of the terms:

    wta     exact for the largest, sampled for the rest: a token is kept with probability pi_t = min(1, ||g_t|| / tau),
            where tau makes the pi_t add up to the budget, and its term is divided by pi_t. Unbiased; the winners-take-
            all split of WTA-CRS (Liu et al. 2023, arXiv 2305.15265, eq. 6) with systematic sampling of the losers.
    grad    the largest alone, unscaled. The best cosine to the dense gradient, and biased: it trains too slowly on
            some tasks.
    random  uniform among the tokens whose gradient is not zero, scaled by their number / budget. Unbiased.

Tokens whose gradient is zero are never chosen, and where no more than `budget` are left all are taken, which is exact.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


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


def _uniform(count: int, seed: int) -> Tensor:
    """Returns `count` numbers in [0, 1) that depend on the seed alone (on the CPU; float64)."""
    return torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _wta(norms: Tensor, budget: int, seed: int) -> tuple[Tensor, Tensor | None]:
    size, order = norms.double().sort(descending=True)
    rest = size.flip(0).cumsum(0).flip(0)  # what is left from each place on
    places = budget - torch.arange(len(size), device=size.device)
    # as long as a row's fair number of places among those left is one or more, it is certain
    certain = int((size[:budget] * places[:budget] >= rest[:budget]).sum())
    sampled = budget - certain
    if sampled == 0:
        return order[:certain], None
    tail, total = size[certain:], rest[certain]
    points = (torch.arange(sampled) + _uniform(1, seed)).to(size.device) * (total / sampled)
    at = torch.searchsorted(tail.cumsum(0), points, right=True).clamp_(max=len(tail) - 1)
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


def choose(norms: Tensor, budget: int, rule: str, seed: int) -> Choice:
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
