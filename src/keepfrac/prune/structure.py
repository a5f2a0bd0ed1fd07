"""What a structured pruner decides: which heads, neurons and ranks each layer keeps.

`ModelShape` is the original dense encoder (the denominator of every keep_frac), `LayerCounts` says how much of a
layer is there (numbers, or expected numbers as tensors), `Structure` names the units that stay, by index.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Protocol

from torch import Tensor

from keepfrac.errors import UserError
from keepfrac.tensors.layouts import LinearLayout

ROLES = ("query", "key", "value", "attention_output", "ffn_in", "ffn_out")
"""The six linears of an encoder layer, by the names that `models.anatomy` gives them."""

Number = int | float | Tensor
Indices = tuple[int, ...]


class LayerParts(Protocol):
    """What this room needs to know of a layer: `models.cut.encoder_layers` gives it.

    Each role is the module path of a linear, or None where an earlier cut removed the sub-layer.
    """

    @property
    def query(self) -> str | None: ...
    @property
    def key(self) -> str | None: ...
    @property
    def value(self) -> str | None: ...
    @property
    def attention_output(self) -> str | None: ...
    @property
    def ffn_in(self) -> str | None: ...
    @property
    def ffn_out(self) -> str | None: ...
    @property
    def layer_norms(self) -> tuple[str, ...]: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def ffn_gate(self) -> str | None: ...
    @property
    def unit_width(self) -> int: ...
    @property
    def layout(self) -> LinearLayout: ...


@dataclass(frozen=True)
class ModelShape:
    """The original dense encoder or decoder: all its layers are alike.

    Args:
        num_layers: of the model.
        hidden: width of the residual.
        num_heads: of a layer; where query heads share key-value heads, these: they go together, as one unit.
        head_dim: width of one head.
        num_neurons: of a feed-forward block.
        group: query heads of a unit.
        gated: whether the feed-forward block has a third linear, the gate.
        causal: whether it is a decoder.
    """

    num_layers: int
    hidden: int
    num_heads: int
    head_dim: int
    num_neurons: int
    group: int = 1
    gated: bool = False
    causal: bool = False

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, bool) and value < 1:
                raise UserError(f"the shape's {name} is {value}: it must be at least 1")

    def linear(self, role: str, heads: Number, neurons: Number) -> tuple[Number, Number]:
        """Returns (inputs, outputs) of a layer's linear (`roles`) with `heads` heads and `neurons` neurons."""
        width = heads * self.head_dim
        return {
            "query": (self.hidden, width * self.group),
            "attention_output": (width * self.group, self.hidden),
            "ffn_in": (self.hidden, neurons),
            "ffn_gate": (self.hidden, neurons),
            "ffn_out": (neurons, self.hidden),
        }.get(role, (self.hidden, width))

    @property
    def roles(self) -> tuple[str, ...]:
        """The linears of a layer."""
        return (*ROLES, "ffn_gate") if self.gated else ROLES

    @property
    def kind(self) -> str:
        """What it is called in units."""
        return "decoder" if self.causal else "encoder"

    def counts(self) -> list[LayerCounts]:
        """Returns the counts of the dense model."""
        return [LayerCounts(self.num_heads, self.num_neurons) for _ in range(self.num_layers)]


@dataclass(frozen=True)
class LayerCounts:
    """How many heads and neurons a layer has, and the rank of each linear that is held as two factors.

    Tensors where the counts are expectations that a gradient must reach.
    """

    heads: Number
    neurons: Number
    ranks: Mapping[str, Number] = field(default_factory=dict)


@dataclass(frozen=True)
class LayerStructure:
    """The units that a layer keeps, by index, ascending.

    No heads (no neurons): the sub-layer is removed, its bias too, its layer norm stays.
    Dropped: the whole layer is the identity, its layer norms removed as well.
    """

    heads: Indices
    neurons: Indices
    ranks: Mapping[str, Indices] = field(default_factory=dict)
    dropped: bool = False

    def __post_init__(self) -> None:
        for name, units in (("heads", self.heads), ("neurons", self.neurons), *self.ranks.items()):
            if any(a >= b for a, b in pairwise(units)) or (units and units[0] < 0):
                raise UserError(f"a structure's {name} must be distinct, ascending and at least 0")
        unknown = set(self.ranks) - set(ROLES)
        if unknown:
            raise UserError(f"a structure has ranks for {sorted(unknown)}: known are {', '.join(ROLES)}")
        if self.dropped and (self.heads or self.neurons):
            raise UserError("a dropped layer keeps no heads and no neurons")

    @property
    def counts(self) -> LayerCounts:
        return LayerCounts(len(self.heads), len(self.neurons), {k: len(v) for k, v in self.ranks.items()})

    @property
    def empty(self) -> bool:
        """Whether both sub-layers are removed."""
        return not self.heads and not self.neurons


@dataclass(frozen=True)
class Structure:
    """The kept units of every layer of the model as it stands (indices into *its* units)."""

    layers: tuple[LayerStructure, ...]

    @classmethod
    def full(cls, counts: Iterable[LayerCounts]) -> Structure:
        """Returns the structure of a whole model with these counts."""
        return cls(
            tuple(
                LayerStructure(
                    tuple(range(int(c.heads))),
                    tuple(range(int(c.neurons))),
                    {role: tuple(range(int(rank))) for role, rank in c.ranks.items()},
                )
                for c in counts
            )
        )

    def counts(self) -> list[LayerCounts]:
        return [layer.counts for layer in self.layers]

    def without_empty_layers(self) -> Structure:
        """Returns the structure in which a layer with neither sub-layer is dropped whole, its two layer norms too.

        Not exact: the norms of an emptied layer still act. Do it before recovery, and train on.
        """
        return Structure(tuple(LayerStructure((), (), {}, True) if s.empty else s for s in self.layers))

    def check(self, counts: Sequence[LayerCounts]) -> None:
        """Holds the structure against the model that it is to be applied to.

        Raises:
            UserError: another number of layers, a unit that the model does not have, or a rank of a whole linear.
        """
        if len(self.layers) != len(counts):
            raise UserError(f"the structure has {len(self.layers)} layers, the model {len(counts)}")
        for i, (layer, have) in enumerate(zip(self.layers, counts, strict=True)):
            units = [("heads", layer.heads, have.heads), ("neurons", layer.neurons, have.neurons)]
            units += [(f"ranks of {r}", kept, have.ranks.get(r, 0)) for r, kept in layer.ranks.items()]
            for name, kept, available in units:
                if kept and kept[-1] >= available:
                    raise UserError(f"layer {i} has {available} {name}; the structure keeps number {kept[-1]}")

    def to_json(self) -> str:
        """Returns JSON: `{"layers": [{"heads": [...], "neurons": [...], "ranks": {...}, "dropped": false}]}`."""
        return json.dumps(
            {
                "layers": [
                    {
                        "heads": list(s.heads),
                        "neurons": list(s.neurons),
                        "ranks": {role: list(r) for role, r in s.ranks.items()},
                        "dropped": s.dropped,
                    }
                    for s in self.layers
                ]
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Structure:
        """Returns the inverse of `to_json`.

        Raises:
            UserError: not JSON, or not a structure.
        """
        try:
            return cls(tuple(_layer_from(entry) for entry in json.loads(text)["layers"]))
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"this is not a structure: {error!r}") from error


def _layer_from(entry: dict) -> LayerStructure:
    ranks = {role: tuple(map(int, r)) for role, r in entry["ranks"].items()}
    heads, neurons = (tuple(map(int, entry[name])) for name in ("heads", "neurons"))
    return LayerStructure(heads, neurons, ranks, bool(entry["dropped"]))


def keep_layers(counts: Sequence[LayerCounts], kept: Iterable[int]) -> Structure:
    """Returns the structure in which the layers `kept` stay whole and the others are dropped, layer norms too."""
    kept = set(kept)
    if not kept or not kept <= set(range(len(counts))):
        raise UserError(f"layers to keep are {sorted(kept)}: name at least one of 0..{len(counts) - 1}")
    whole = Structure.full(counts).layers
    gone = replace(whole[0], heads=(), neurons=(), ranks={}, dropped=True)
    return Structure(tuple(layer if i in kept else gone for i, layer in enumerate(whole)))
