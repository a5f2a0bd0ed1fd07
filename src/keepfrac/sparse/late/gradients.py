"""The gradients of linear layers' tensors: of weights and updates over chosen rows, of biases over all."""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from keepfrac.adapters.function import places
from keepfrac.sparse.late.linears import Joined, Update
from keepfrac.sparse.late.products import add_outer, column_sums


class Gradients:
    """The gradients of joined linears' tensors, summed up piece by piece.

    Args:
        linears: them.
        needs: of their `Held.tensors`, whether each wants a gradient.
    """

    def __init__(self, linears: Joined, needs: Sequence[bool]) -> None:
        self.joined = linears
        tensors = [tensor for one in linears.linears for tensor in one.tensors()]
        at = list(accumulate([0, *(len(one.tensors()) for one in linears.linears)]))[:-1]
        self.weights, self.biases = at, [place + 1 for place in at]
        self.whole: Tensor | None = None
        self.totals: list[Tensor | None] = [None] * len(tensors)
        if len(at) > 1 and all(needs[place] for place in at):  # one product for all
            like = linears.linears[0].weight
            self.whole = like.new_zeros(linears.weight.shape)
            for place, columns in zip(at, linears.columns, strict=True):
                self.totals[place] = self.whole[columns]
        for place, tensor in enumerate(tensors):
            if needs[place] and self.totals[place] is None and tensor is not None:
                self.totals[place] = torch.zeros_like(tensor)

    @property
    def wants_rows(self) -> bool:
        """Whether any of them is a sum over rows of g x^T."""
        return any(one is not None for place, one in enumerate(self.totals) if place not in self.biases)

    def add(self, g: Tensor, x: Tensor) -> None:
        """Adds the rows' terms: g (rows, outputs of all) and x (rows, inputs), one of them times their factors."""
        if self.whole is not None:
            add_outer(self.whole, g, x)
        for place, columns in zip(self.weights, self.joined.columns, strict=True):
            total = self.totals[place]
            if self.whole is None and total is not None:
                add_outer(total, g[:, columns], x)
        updates = [place + 2 + 4 * i for place, n in self._updates() for i in range(n)]
        for place, (columns, one) in zip(updates, self.joined.updates, strict=True):
            self._add_update(place, g[:, columns], x, one)

    def _updates(self) -> list[tuple[int, int]]:
        counts = [len(one.updates) for one in self.joined.linears]
        return list(zip(self.weights, counts, strict=True))

    def _add_update(self, place: int, g: Tensor, x: Tensor, one: Update) -> None:
        d_u, d_v, d_values = self.totals[place : place + 3]
        compute = self.joined.compute
        if d_u is not None:
            add_outer(d_u, g, (x @ one.v.to(compute).t()).mul_(one.scale))
        if d_v is not None:
            add_outer(d_v, (g @ one.u.to(compute)).mul_(one.scale), x)
        if d_values is not None and one.positions is not None:
            into, out_of = places(one.positions, x.shape[1])
            d_values.add_((g[:, into] * x[:, out_of]).sum(0, dtype=d_values.dtype), alpha=one.scale)

    def add_biases(self, g: Tensor) -> None:
        """Adds the sums over all rows of g (rows, outputs of all)."""
        totals = [self.totals[place] for place in self.biases]
        if all(total is None for total in totals):
            return
        dtype = next(total.dtype for total in totals if total is not None)
        sums = column_sums(g, dtype)
        for total, columns in zip(totals, self.joined.columns, strict=True):
            if total is not None:
                total += sums[columns]
