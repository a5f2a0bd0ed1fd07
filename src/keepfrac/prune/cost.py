"""What a structure costs, always as a share of the original dense model.

One arithmetic serves both uses: counts that are tensors give an expected cost that a gradient reaches, counts that
are numbers give the exact one. For `params` and `macs` the cost is linear in each unit, so the cost of the expected
counts of independent gates *is* the expected cost. For `latency` it is the cost at the expected width.

What is counted is the encoder's linears (84,934,656 weights for BERT-base), without biases, norms, embeddings,
pooler and head: those are reported apart (`prune.accounting`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

from keepfrac.errors import UserError
from keepfrac.prune.latency import LatencyTable
from keepfrac.prune.structure import LayerCounts, ModelShape, Number

ATTENTION_ROLES = ("query", "key", "value", "attention_output")


class Cost(Protocol):
    """A cost that is a sum over sub-layers."""

    unit: str
    shape: ModelShape

    def attention(self, heads: Number, ranks: Mapping[str, Number]) -> Number: ...

    def ffn(self, neurons: Number, ranks: Mapping[str, Number]) -> Number: ...

    @property
    def dense(self) -> float: ...


def total(cost: Cost, counts: Sequence[LayerCounts]) -> Number:
    """Returns the cost of all layers, in the cost's unit."""
    return sum(cost.attention(c.heads, c.ranks) + cost.ffn(c.neurons, c.ranks) for c in counts)


def fraction(cost: Cost, counts: Sequence[LayerCounts]) -> Number:
    """Returns the share of the original dense model's cost: a number, or a scalar tensor for expected counts."""
    return total(cost, counts) / cost.dense


class ParamsCost:
    """Weights of the encoder's linears; a low-rank linear of rank r counts r (m + n).

    An exact rank counts min(r (m + n), m n), because a linear at or above break-even is merged back. An expected
    rank does not take the minimum: its gradient would vanish exactly where ranks must begin to fall.

    Args:
        shape: the original dense encoder.
        merges: whether linears at or above break-even are merged; false: two factors count as two, whatever the rank.
    """

    def __init__(self, shape: ModelShape, merges: bool = True) -> None:
        self.shape, self.merges = shape, merges
        self.unit = f"weights of the {shape.kind}'s linears"

    def attention(self, heads: Number, ranks: Mapping[str, Number]) -> Number:
        return sum(self._linear(role, heads, 0, ranks) for role in ATTENTION_ROLES)

    def ffn(self, neurons: Number, ranks: Mapping[str, Number]) -> Number:
        roles = [role for role in self.shape.roles if role not in ATTENTION_ROLES]
        return sum(self._linear(role, 0, neurons, ranks) for role in roles)

    @property
    def dense(self) -> float:
        return float(total(self, self.shape.counts()))

    def _linear(self, role: str, heads: Number, neurons: Number, ranks: Mapping[str, Number]) -> Number:
        inputs, outputs = self.shape.linear(role, heads, neurons)
        if role not in ranks:
            return inputs * outputs
        rank, whole = ranks[role], inputs * outputs
        if isinstance(whole, Tensor) or isinstance(rank, Tensor):
            removed = not isinstance(whole, Tensor) and whole == 0
            return 0.0 if removed else rank * (inputs + outputs)
        if whole == 0:
            return 0  # a removed sub-layer takes its factors along
        factors = rank * (inputs + outputs)
        return min(factors, whole) if self.merges else factors


class MacsCost(ParamsCost):
    """Multiply-accumulates of one sequence through the encoder: its linears, and Q K^T and A V.

    Softmax, norms, activations, embeddings and the head are left out.

    Args:
        shape: see `ParamsCost`.
        length: tokens of the sequence, >= 1.
        merges: see `ParamsCost`.
    """

    def __init__(self, shape: ModelShape, length: int, merges: bool = True) -> None:
        super().__init__(shape, merges)
        if length < 1:
            raise UserError(f"MACs are counted at length {length}: it must be at least 1 token")
        self.length = length
        self.unit = f"MACs of the {shape.kind} at {length} tokens"

    def attention(self, heads: Number, ranks: Mapping[str, Number]) -> Number:
        products = 2 * self.length**2 * self.shape.head_dim * self.shape.group * heads
        return self.length * super().attention(heads, ranks) + products

    def ffn(self, neurons: Number, ranks: Mapping[str, Number]) -> Number:
        return self.length * super().ffn(neurons, ranks)


class LatencyCost:
    """Milliseconds of the encoder's sub-layers by a measured table, piecewise linear in heads and in neurons.

    Args:
        shape: the original dense encoder.
        table: measured on the device that the model is for; its largest counts are the dense ones.
    """

    def __init__(self, shape: ModelShape, table: LatencyTable) -> None:
        if (table.heads[-1][0], table.neurons[-1][0]) != (shape.num_heads, shape.num_neurons):
            raise UserError(
                f"the latency table ends at {table.heads[-1][0]} heads and {table.neurons[-1][0]} neurons; "
                f"the dense model has {shape.num_heads} and {shape.num_neurons}: measure it for this model"
            )
        self.shape, self.table = shape, table
        self.unit = f"ms of the encoder ({table.conditions})"

    def attention(self, heads: Number, ranks: Mapping[str, Number]) -> Number:
        self._refuse(ranks)
        return self.table.attention(heads)

    def ffn(self, neurons: Number, ranks: Mapping[str, Number]) -> Number:
        self._refuse(ranks)
        return self.table.ffn(neurons)

    @property
    def dense(self) -> float:
        return float(total(self, self.shape.counts()))

    @staticmethod
    def _refuse(ranks: Mapping[str, Number]) -> None:
        if ranks:
            raise UserError("cost=latency knows heads and neurons only: use params or macs with low-rank linears")
