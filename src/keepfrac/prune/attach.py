"""Gates on a live model, by hooks: no model file is copied, no parameter is renamed.

Where a gate acts, for a layer whose two sub-layers are attention and feed-forward:

    head        the input of the attention output projection, (batch, length, heads * head_dim)
    neuron      the input of the second feed-forward linear, (batch, length, neurons)
    sub-layer   the output of the same linears, bias included, before dropout and residual: z = 0 is removal
    rank        the input of the second factor of a low-rank linear, (batch, length, rank)

The layer norm of a removed sub-layer stays and sees the residual alone: LN(x + 0).
Hooks sit on modules: convert modules (sparse backward, low rank) before attaching.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from keepfrac.errors import UserError
from keepfrac.prune.factorize import dense_weight
from keepfrac.prune.structure import ROLES, LayerCounts, LayerParts, Number, Structure


class GateValues(Protocol):
    """Gates of the current forward pass; None: no gate (open)."""

    def units(self, layer: int, family: str) -> Tensor | None:
        """Returns the gates of a layer's "heads" (heads,) or "neurons" (neurons,)."""

    def sub_layer(self, layer: int, part: str) -> Tensor | None:
        """Returns the scalar gate of "attention" or "ffn"."""

    def rank(self, layer: int, role: str) -> Tensor | None:
        """Returns the gates of a low-rank linear's directions (rank,)."""

    def dropped(self, layer: int) -> bool:
        """Returns whether the layer is the identity, layer norms included."""


def attach(net: nn.Module, layers: Sequence[LayerParts], gates: GateValues) -> list[RemovableHandle]:
    """Puts the gates onto the model.

    Args:
        net: the model.
        layers: the parts of its layers (`models.cut.encoder_layers`).
        gates: asked at every forward, so that a new sample needs no new hooks.

    Returns:
        The hooks' handles.
    """
    handles: list[RemovableHandle] = []
    for i, layer in enumerate(layers):
        if layer.attention_output is not None:
            output = net.get_submodule(layer.attention_output)
            units = UnitGate(gates, i, "heads", layer.unit_width)
            handles.append(output.register_forward_pre_hook(units))
            handles.append(output.register_forward_hook(SubLayerGate(gates, i, "attention")))
        if layer.ffn_out is not None:
            output = net.get_submodule(layer.ffn_out)
            handles.append(output.register_forward_pre_hook(UnitGate(gates, i, "neurons", 1)))
            handles.append(output.register_forward_hook(SubLayerGate(gates, i, "ffn")))
        handles += [net.get_submodule(path).register_forward_hook(Bypass(gates, i)) for path in layer.layer_norms]
        handles += _attach_ranks(net, layer, gates, i)
    return handles


def read_counts(net: nn.Module, layers: Sequence[LayerParts]) -> list[LayerCounts]:
    """Returns the heads, neurons and ranks that the model has now, read from its modules."""
    found = []
    for layer in layers:
        heads = _inputs(net, layer.attention_output) // layer.unit_width
        neurons = _inputs(net, layer.ffn_out)
        paths = {role: getattr(layer, role) for role in ROLES if getattr(layer, role) is not None}
        ranks = {role: r for role, path in paths.items() if (r := rank_of(net.get_submodule(path))) is not None}
        found.append(LayerCounts(heads, neurons, ranks))
    return found


def _inputs(net: nn.Module, path: str | None) -> int:
    if path is None:
        return 0
    module = net.get_submodule(path)
    if hasattr(module, "in_features"):
        return int(module.in_features)  # type: ignore[arg-type]
    return len(module.get_parameter("weight"))  # Conv1D: (inputs, outputs)


def role_weight(net: nn.Module, layer: LayerParts, role: str) -> Tensor:
    """Returns the weight of one of a layer's linears, (outputs, inputs): a packed one's part, two factors' product."""
    path = getattr(layer, role)
    assert path is not None, "a sub-layer has all its linears or none"
    module = net.get_submodule(path)
    layout = layer.layout
    weight = layout.oriented(module.get_parameter("weight")) if layout.transposed else dense_weight(module)
    return layout.part(role, weight)


def rank_of(linear: nn.Module) -> int | None:
    """Returns the rank of a linear held as two factors `p` and `q`, None of a whole one."""
    factor = getattr(linear, "p", None)
    return getattr(factor, "out_features", None) if isinstance(factor, nn.Module) else None


def _attach_ranks(net: nn.Module, layer: LayerParts, gates: GateValues, index: int) -> list[RemovableHandle]:
    handles = []
    for role in ROLES:
        path = getattr(layer, role)
        if path is not None and rank_of(net.get_submodule(path)) is not None:
            factor = net.get_submodule(f"{path}.q")
            handles.append(factor.register_forward_pre_hook(RankGate(gates, index, role)))
    return handles


@dataclass(frozen=True)
class UnitGate:
    """Before a linear: its input's columns times the gates of their units."""

    gates: GateValues
    layer: int
    family: str
    width: int

    def columns(self, inputs: int) -> Tensor | None:
        """Returns the factors of the input's columns (inputs,); None: no gate there."""
        z = self.gates.units(self.layer, self.family)
        if z is not None and len(z) * self.width != inputs:
            raise UserError(f"layer {self.layer}: {len(z)} gates of {self.family} for an input of width {inputs}")
        return None if z is None else z.repeat_interleave(self.width)

    def __call__(self, module: nn.Module, args: tuple) -> tuple | None:
        z = self.columns(args[0].shape[-1])
        return None if z is None else (args[0] * z.to(args[0].dtype), *args[1:])


@dataclass(frozen=True)
class RankGate:
    """Before the second factor of a low-rank linear."""

    gates: GateValues
    layer: int
    role: str

    def value(self) -> Tensor | None:
        """Returns the gates (rank,); None: no gate there."""
        return self.gates.rank(self.layer, self.role)

    def __call__(self, module: nn.Module, args: tuple) -> tuple | None:
        z = self.value()
        return None if z is None else (args[0] * z.to(args[0].dtype), *args[1:])


@dataclass(frozen=True)
class SubLayerGate:
    """After the last linear of a sub-layer, its bias included."""

    gates: GateValues
    layer: int
    part: str

    def value(self) -> Tensor | None:
        """Returns the gate, a scalar; None: no gate there."""
        return self.gates.sub_layer(self.layer, self.part)

    def __call__(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        z = self.value()
        return None if z is None else output * z.to(output.dtype)


@dataclass(frozen=True)
class Bypass:
    """After a layer norm: in a dropped layer it returns its input."""

    gates: GateValues
    layer: int

    def dropped(self) -> bool:
        """Returns whether the layer is the identity."""
        return self.gates.dropped(self.layer)

    def __call__(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        return args[0] if self.dropped() else None


HOOKS = (UnitGate, RankGate, SubLayerGate, Bypass)
"""What `attach` puts onto modules. Who does not call these modules can ask the hooks for the gates' values."""


@dataclass(frozen=True)
class FixedGates:
    """Gates with given values: to mask a model as a structure would cut it, to fold, and for gate gradients.

    Args:
        heads: per layer (heads,), or None = open.
        neurons: per layer (neurons,), or None.
        attention: of the attention sub-layers, (layers,), or None.
        ffn: of the feed-forward sub-layers, (layers,), or None.
        ranks: per layer, role -> (rank,), or None.
        drop: layers that are the identity.
    """

    heads: Sequence[Tensor] | None = None
    neurons: Sequence[Tensor] | None = None
    attention: Tensor | None = None
    ffn: Tensor | None = None
    ranks: Sequence[Mapping[str, Tensor]] | None = None
    drop: frozenset[int] = frozenset()

    def units(self, layer: int, family: str) -> Tensor | None:
        values = self.heads if family == "heads" else self.neurons
        return None if values is None else values[layer]

    def sub_layer(self, layer: int, part: str) -> Tensor | None:
        values = self.attention if part == "attention" else self.ffn
        return None if values is None else values[layer]

    def rank(self, layer: int, role: str) -> Tensor | None:
        return None if self.ranks is None else self.ranks[layer].get(role)

    def dropped(self, layer: int) -> bool:
        return layer in self.drop


def gates_of(structure: Structure, counts: Sequence[LayerCounts], device: torch.device | None = None) -> FixedGates:
    """Returns the 0/1 gates of a `Structure` on a model with these counts: what cutting by it must equal."""

    def indicator(units: tuple[int, ...], size: Number) -> Tensor:
        z = torch.zeros(int(size), device=device)
        z[list(units)] = 1.0
        return z

    pairs = list(zip(structure.layers, counts, strict=True))
    return FixedGates(
        heads=[indicator(s.heads, c.heads) for s, c in pairs],
        neurons=[indicator(s.neurons, c.neurons) for s, c in pairs],
        attention=torch.tensor([float(bool(s.heads)) for s, _ in pairs], device=device),
        ffn=torch.tensor([float(bool(s.neurons)) for s, _ in pairs], device=device),
        ranks=[{role: indicator(kept, c.ranks[role]) for role, kept in s.ranks.items()} for s, c in pairs],
        drop=frozenset(i for i, (s, _) in enumerate(pairs) if s.dropped),
    )
