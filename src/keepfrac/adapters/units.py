"""Heads and neurons of a model with updates: how much each matters, and the updates when units are cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from keepfrac.adapters.layer import AdaptedLinear, Update
from keepfrac.adapters.slicing import slice_update
from keepfrac.prune.attach import FixedGates, rank_of
from keepfrac.prune.structure import LayerCounts, LayerParts, Structure
from keepfrac.tensors.layouts import is_transposed

SOURCES = {"heads": ("query", "key", "value"), "neurons": ("ffn_in", "ffn_gate")}
TARGETS = {"heads": "attention_output", "neurons": "ffn_out"}
Updates = dict[str, dict[str, Update]]


@torch.no_grad()
def unit_scores(net: nn.Module, layers: Sequence[LayerParts], with_weight: bool) -> tuple[list[Tensor], list[Tensor]]:
    """Scores of heads and of neurons: the sum of |delta|, or of |W + delta|, over the entries that a unit owns.

    Args:
        net: the model.
        layers: its layers.
        with_weight: whether the weight counts too; else a linear without an update counts 0.

    Returns:
        Per layer (heads,), and per layer (neurons,).
    """
    heads, neurons = ([_owned(net, layer, family, with_weight) for layer in layers] for family in SOURCES)
    return heads, neurons


def _owned(net: nn.Module, layer: LayerParts, family: str, with_weight: bool) -> Tensor:
    """(units,): entries in the rows of the sources and the columns of the target, summed."""
    role = TARGETS[family]
    if getattr(layer, role) is None:
        return torch.zeros(0)
    total = _by_unit(_matrix(net, layer, role, with_weight).abs().sum(0), layer, role)
    for role in SOURCES[family]:
        if getattr(layer, role) is not None:
            total = total + _by_unit(_matrix(net, layer, role, with_weight).abs().sum(1), layer, role)
    return total


def _by_unit(sums: Tensor, layer: LayerParts, role: str) -> Tensor:
    return sums.view(-1, _width(layer, role)).sum(1)


def _width(layer: LayerParts, role: str) -> int:
    """Rows or columns of one unit."""
    if role in ("key", "value"):
        return layer.head_dim
    return layer.unit_width if role in ("query", "attention_output") else 1


def _matrix(net: nn.Module, layer: LayerParts, role: str, with_weight: bool) -> Tensor:
    """(outputs, inputs) of W + delta, or of delta, also of a linear in two factors, and of a packed one's part."""
    module = net.get_submodule(getattr(layer, role))
    if rank_of(module) is None:
        weight, changed = _pair(module)
    else:
        (p, p_changed), (q, q_changed) = (_pair(module.get_submodule(name)) for name in ("p", "q"))
        weight, changed = q @ p, q_changed @ p_changed
    found = changed if with_weight else changed - weight
    return layer.layout.part(role, found)


def _pair(module: nn.Module) -> tuple[Tensor, Tensor]:
    weight = module.get_parameter("weight").float()
    if isinstance(module, AdaptedLinear):
        return module.oriented(weight), module.oriented(weight + module.delta().float())
    oriented = weight.t() if is_transposed(module) else weight
    return oriented, oriented


def cut_updates(
    updates: Updates,
    layers: Sequence[LayerParts],
    counts: Sequence[LayerCounts],
    structure: Structure,
    gates: FixedGates | None,
) -> Updates:
    """Updates for the model that `models.cut.cut` makes of this structure (which drops no layer).

    Args:
        updates: by path and role, of the model before the cut.
        layers: of that model.
        counts: of that model.
        structure: what stays.
        gates: what is folded into the kept columns, as for the cut; None: nothing.
    """
    found = dict(updates)
    for i, (layer, have, kept) in enumerate(zip(layers, counts, structure.layers, strict=True)):
        for family, target in TARGETS.items():
            path = getattr(layer, target)
            if path is None:
                continue
            units, width = getattr(kept, family), _width(layer, target)
            gate = None if gates is None else gates.units(i, family)
            gate = None if gate is None else gate.repeat_interleave(width)
            _cut(found, {path, f"{path}.p"}, None, _widened(units, width), gate)
            for path, rows in _source_rows(layer, family, units, int(getattr(have, family))).items():
                _cut(found, {path, f"{path}.q"}, rows, None, None)
    return found


def _source_rows(layer: LayerParts, family: str, units: Sequence[int], whole: int) -> dict[str, Tensor]:
    """Kept outputs by path; those of a packed linear's parts together."""
    rows: dict[str, Tensor] = {}
    for number, role in enumerate(SOURCES[family]):
        path, width = getattr(layer, role), _width(layer, role)
        if path is not None:
            part = _widened(units, width) + (number * whole * width if path in rows else 0)
            rows[path] = torch.cat([rows[path], part]) if path in rows else part
    return rows


def _widened(units: Sequence[int], width: int) -> Tensor:
    return (torch.tensor(units, dtype=torch.long)[:, None] * width + torch.arange(width)).flatten()


def _cut(updates: Updates, paths: set[str], rows: Tensor | None, columns: Tensor | None, gate: Tensor | None) -> None:
    for path in paths & updates.keys():
        updates[path] = {role: slice_update(update, rows, columns, gate) for role, update in updates[path].items()}


def has_update(modules: Mapping[str, object], layers: Sequence[LayerParts], family: str) -> bool:
    """Returns whether a family ("heads" or "neurons") owns entries of a linear that has an update."""
    roles = (*SOURCES[family], TARGETS[family])
    paths = [getattr(layer, role) for layer in layers for role in roles]
    return any(name in modules for path in paths for name in (path, f"{path}.p", f"{path}.q"))
