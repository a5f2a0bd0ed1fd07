"""Linear layers as the blocks take them: weight, bias, low-rank updates, and gates on the input.

    two factors    the product of the factors is the weight; its gradient goes on to both
    updates        y = W x + b + s (U V + S2) x with W frozen (`adapters.layer`): nothing of W's size is made, and no
                   gradient of W; U, V and S2 have theirs from the same rows as any weight
    gates          on the input's columns, z o x, and on the output, with its bias (`prune.attach`); both become one
                   vector of factors for the columns, and the bias times the output's gate

Linears that read the same input (query, key, value) are one `FusedLinear`: one product, one choice of rows.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from keepfrac.adapters.function import unravel_positions
from keepfrac.adapters.layer import AdaptedLinear
from keepfrac.models.pruned import LowRankLinear
from keepfrac.prune.attach import RankGate, SubLayerGate, UnitGate
from keepfrac.tensors.layouts import is_transposed

UpdateLayout = tuple[tuple[int, float], ...]
"""Of one linear's updates: the first output of each and its scale. All that is not a tensor."""


def compute_dtype(x: Tensor) -> torch.dtype:
    """Returns the dtype of the matmuls: autocast's where it is on, x's otherwise."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def without_autocast(x: Tensor) -> torch.autocast:
    """Returns a context without autocast: the blocks cast once by themselves, not at every matmul."""
    return torch.autocast(x.device.type, enabled=False)


class LowRankUpdate(NamedTuple):
    """s (U V + S2), added to the outputs from `start` on; see `adapters.layer.Update`."""

    u: Tensor
    v: Tensor
    values: Tensor | None
    positions: Tensor | None
    start: int
    scale: float


class LinearSpec(NamedTuple):
    """One linear.

    Args:
        weight: (outputs, inputs).
        bias: (outputs,); None: there is none.
        updates: added to the weight.
    """

    weight: Tensor
    bias: Tensor | None
    updates: tuple[LowRankUpdate, ...] = ()

    def tensors(self) -> list[Tensor | None]:
        """Returns weight, bias and four tensors for each update: U, V, the values of S2 and their places."""
        return [self.weight, self.bias, *(one for update in self.updates for one in update[:4])]

    def layout(self) -> UpdateLayout:
        """Returns what `tensors` does not hold."""
        return tuple((update.start, update.scale) for update in self.updates)

    def made(self) -> list[Tensor]:
        """Returns the matrices that were made for this call."""
        own = isinstance(self.weight, nn.Parameter) or isinstance(self.weight._base, nn.Parameter)
        return [] if own else [self.weight]


def _hooks(module: nn.Module, kind: Any) -> list[Any]:
    hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    return [hook for hook in hooks if isinstance(hook, kind)]


def _whole(factor: Any) -> Tensor:
    """The weight of one of two factors, its updates included."""
    if not isinstance(factor, AdaptedLinear):
        return factor.weight
    return factor.constrained_weight() if factor.constrained else factor.weight + factor.delta()


def spec_of(linear: Any) -> LinearSpec:
    """Returns a linear as the blocks take it, without its gates."""
    if isinstance(linear, LowRankLinear):
        with torch.autocast(linear.p.weight.device.type, enabled=False):
            first = _whole(linear.p)
            for gate in _hooks(linear.q, RankGate):
                z = gate.value()
                first = first if z is None else first * z.to(first.dtype).unsqueeze(1)
            return LinearSpec(_whole(linear.q) @ first, linear.q.bias)
    if not isinstance(linear, AdaptedLinear):
        return LinearSpec(linear.weight.t() if is_transposed(linear) else linear.weight, linear.bias)
    if linear.constrained:
        return LinearSpec(linear.oriented(linear.constrained_weight()), linear.bias)
    names = LowRankUpdate._fields
    updates = [LowRankUpdate(**{name: getattr(one, name) for name in names}) for one in linear.parts()]
    return LinearSpec(linear.oriented(linear.weight), linear.bias, tuple(updates))


def gated_spec_of(linear: Any) -> tuple[LinearSpec, Tensor | None]:
    """Returns a linear, and the factors of its input's columns (inputs,) that its gates come to; None: no gate."""
    spec, columns = spec_of(linear), None
    for gate in _hooks(linear, UnitGate):
        z = gate.columns(spec.weight.shape[1])
        columns = z if columns is None or z is None else columns * z
    for gate in _hooks(linear, SubLayerGate):
        if (z := gate.value()) is not None:
            spec = spec if spec.bias is None else spec._replace(bias=spec.bias * z.to(spec.bias.dtype))
            # contiguous: the kernels walk over its numbers
            columns = z.expand(spec.weight.shape[1]).contiguous() if columns is None else columns * z
    return spec, None if columns is None else columns.to(spec.weight.dtype)


def unpack_linears(tensors: Sequence[Tensor | None], layouts: Sequence[UpdateLayout]) -> list[LinearSpec]:
    """Returns the linears whose `tensors` follow one another."""
    found, at = [], 0
    for layout in layouts:
        weight, bias = tensors[at : at + 2]
        updates = []
        for number, (start, scale) in enumerate(layout):
            u, v, values, positions = tensors[at + 2 + 4 * number : at + 6 + 4 * number]
            assert u is not None and v is not None
            updates.append(LowRankUpdate(u=u, v=v, values=values, positions=positions, start=start, scale=scale))
        assert weight is not None
        found.append(LinearSpec(weight, bias, tuple(updates)))
        at += 2 + 4 * len(layout)
    return found


class FusedLinear:
    """Linears that read the same input.

    Args:
        linears: one after the other; their outputs stand side by side.
        compute: dtype of the products.
    """

    def __init__(self, linears: Sequence[LinearSpec], compute: torch.dtype) -> None:
        self.linears, self.compute = linears, compute
        weights = [one.weight for one in linears]
        self.weight = (torch.cat(weights) if len(weights) > 1 else weights[0]).to(compute)
        self.bias = self._bias()
        edges = [0, *accumulate(len(weight) for weight in weights)]
        self.columns = [slice(*pair) for pair in pairwise(edges)]
        self.updates = [
            (slice(part.start + update.start, part.start + update.start + len(update.u)), update)
            for part, one in zip(self.columns, linears, strict=True)
            for update in one.updates
        ]

    def _bias(self) -> Tensor | None:
        """The biases side by side, zeros for those that are not there."""
        if all(one.bias is None for one in self.linears):
            return None
        biases = [one.weight.new_zeros(len(one.weight)) if one.bias is None else one.bias for one in self.linears]
        return (torch.cat(biases) if len(biases) > 1 else biases[0]).to(self.compute)

    @property
    def outputs(self) -> int:
        """How many all of them have."""
        return len(self.weight)

    def forward(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """(rows, inputs) -> (rows, outputs of all), into `out` where it is given."""
        if self.bias is None:
            y = torch.mm(x, self.weight.t(), out=out)
        else:
            y = torch.addmm(self.bias, x, self.weight.t(), out=out)
        for columns, one in self.updates:
            u, v = one.u.to(self.compute), one.v.to(self.compute)
            y[:, columns].addmm_(x @ v.t(), u.t(), alpha=one.scale)
            if one.values is not None and one.positions is not None:
                into, out_of = unravel_positions(one.positions, x.shape[1])
                y[:, columns].index_add_(1, into, x[:, out_of] * (one.scale * one.values).to(self.compute))
        return y

    def add_input_grad(self, total: Tensor, rows: Tensor | slice | None, g: Tensor) -> None:
        """Adds the gradient to the input, of the outputs' gradient g, to total[rows]; `rows` without repetition."""
        _add_product(total, rows, g=g, weight=self.weight)
        for columns, one in self.updates:
            below = g[:, columns] @ one.u.to(self.compute)
            _add_product(total, rows, g=below.mul_(one.scale), weight=one.v.to(self.compute))
            if one.values is not None and one.positions is not None:
                into, out_of = unravel_positions(one.positions, total.shape[1])
                sparse = g.new_zeros(len(g), total.shape[1])
                sparse.index_add_(1, out_of, g[:, columns][:, into] * (one.scale * one.values).to(self.compute))
                if isinstance(rows, Tensor):
                    total.index_add_(0, rows, sparse.to(total.dtype))
                else:
                    (total if rows is None else total[rows]).add_(sparse)

    def input_grad(self, g: Tensor, live: Tensor | None) -> Tensor:
        """Returns the gradient to the input (rows, inputs), where only the `live` rows of g are not zero."""
        if live is None and not self.updates:
            return g @ self.weight
        out = g.new_zeros(len(g), self.weight.shape[1])
        self.add_input_grad(out, live, g if live is None else g.index_select(0, live))
        return out


def _add_product(total: Tensor, rows: Tensor | slice | None, *, g: Tensor, weight: Tensor) -> None:
    """Adds g @ weight to total[rows], in total's dtype; `rows` without repetition."""
    if isinstance(rows, Tensor):
        total.index_add_(0, rows, (g @ weight).to(total.dtype))
        return
    part = total if rows is None else total[rows]
    if part.dtype == g.dtype:
        part.addmm_(g, weight)
    else:
        part.add_(g @ weight)
