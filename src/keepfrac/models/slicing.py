"""Slicing tensors by a structure: the arithmetic of `models.cut`, on any dictionary of named tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from keepfrac.models.anatomy import Layer
from keepfrac.prune.attach import FixedGates
from keepfrac.prune.structure import ROLES, Indices, Structure


@torch.no_grad()
def slice_tensors(
    tensors: dict[str, Tensor],
    layers: Sequence[Layer],
    structure: Structure,
    gates: FixedGates | None = None,
    merge: bool = True,
) -> dict[str, Tensor]:
    """Returns tensors by parameter name, sliced as `cut` slices the parameters (layers keep their numbers).

    Serves a state dict, and boolean masks of its parameters (no gates then). Names that are absent are left out;
    parameters of removed sub-layers and dropped layers are taken out. `merge`: factors at or above break-even become
    one dense weight.
    """
    found = dict(tensors)
    for i, (own, kept) in enumerate(zip(layers, structure.layers, strict=True)):
        layer = replace(own, **own.layout.split(found))  # type: ignore[arg-type]
        ranks = {} if gates is None else {role: gates.rank(i, role) for role in ROLES}
        for role, units in kept.ranks.items():
            _slice_ranks(found, getattr(layer, role), units, ranks.get(role))
        wide, narrow = (_widen(kept.heads, width) for width in (layer.unit_width, layer.head_dim))
        heads: dict[str | None, list[int]] = {layer.query: wide, layer.key: narrow, layer.value: narrow}
        heads |= dict.fromkeys(layer.positions, narrow)
        _slice_units(found, heads, layer.attention_output, wide, _gate(gates, i, "heads", "attention", layer))
        if not kept.heads:  # what else it has, such as norms of query and key
            found = {n: t for n, t in found.items() if not n.startswith(f"{layer.attention}.") or _is_norms(layer, n)}
        neurons = dict.fromkeys((layer.ffn_in, layer.ffn_gate), kept.neurons)
        _slice_units(found, neurons, layer.ffn_out, kept.neurons, _gate(gates, i, "neurons", "ffn", layer))
        for role in ROLES if merge else ():
            _merge(found, getattr(layer, role))
        own.layout.join(found)
        if kept.dropped:
            found = {name: t for name, t in found.items() if not name.startswith(f"{layer.path}.")}
    return found


def _is_norms(layer: Layer, name: str) -> bool:
    return name.startswith(tuple(f"{path}." for path in layer.layer_norms))


def _widen(heads: Indices, head_dim: int) -> list[int]:
    return [head * head_dim + k for head in heads for k in range(head_dim)]


def _gate(gates: FixedGates | None, i: int, family: str, part: str, layer: Layer) -> tuple:
    """(unit gates widened to input columns or None, sub-layer gate or None)."""
    if gates is None:
        return None, None
    z = gates.units(i, family)
    width = layer.unit_width if family == "heads" else 1
    return None if z is None else z.repeat_interleave(width), gates.sub_layer(i, part)


def _names(path: str, tensors: dict[str, Tensor]) -> tuple[str, str, str]:
    """Names of the tensors that hold a linear's input columns, its output rows, and its bias."""
    low = f"{path}.p.weight" in tensors
    if low:
        return f"{path}.p.weight", f"{path}.q.weight", f"{path}.q.bias"
    return f"{path}.weight", f"{path}.weight", f"{path}.bias"


def _slice_units(
    tensors: dict[str, Tensor],
    sources: Mapping[str | None, Sequence[int]],
    target: str | None,
    units: Sequence[int],
    gate: tuple,
) -> None:
    """Keeps these outputs of the sources and the inputs `units` of the target; no units: takes all out.

    A source that the layer does not have is None.
    """
    if target is None:
        return
    if not units:
        gone = tuple(f"{path}." for path in (*sources, target) if path is not None)
        for name in [name for name in tensors if name.startswith(gone)]:
            del tensors[name]
        return
    unit_gate, sub_gate = gate
    for path, outputs in sources.items():
        if path is None:
            continue
        _, rows, bias = _names(str(path), tensors)
        for name in (rows, bias):
            if name in tensors:
                tensors[name] = tensors[name][_index(outputs, tensors[name])]
    columns, rows, bias = _names(target, tensors)
    if columns in tensors:
        kept = _index(units, tensors[columns])
        tensors[columns] = _times(tensors[columns], unit_gate)[:, kept]
    for name in (rows, bias):
        if name in tensors:
            tensors[name] = _times(tensors[name], sub_gate)


def _slice_ranks(tensors: dict[str, Tensor], path: str | None, units: Sequence[int], gate: Tensor | None) -> None:
    p, q = f"{path}.p.weight", f"{path}.q.weight"
    if p in tensors:
        tensors[p] = tensors[p][_index(units, tensors[p])]
    if q in tensors:
        tensors[q] = _times(tensors[q], gate)[:, _index(units, tensors[q])]


def _merge(tensors: dict[str, Tensor], path: str | None) -> None:
    """Two factors at or above break-even become one dense weight, the product in float64."""
    p, q, bias = (f"{path}.{name}" for name in ("p.weight", "q.weight", "q.bias"))
    if p not in tensors or q not in tensors:
        return
    rank, inputs = tensors[p].shape
    outputs = len(tensors[q])
    if rank * (inputs + outputs) < inputs * outputs or tensors[p].dtype == torch.bool:
        return
    factor = tensors.pop(q)
    tensors[f"{path}.weight"] = (factor.double() @ tensors.pop(p).double()).to(factor.dtype)
    if bias in tensors:
        tensors[f"{path}.bias"] = tensors.pop(bias)


def _times(tensor: Tensor, gate: Tensor | None) -> Tensor:
    return tensor if gate is None else (tensor.float() * gate.to(tensor.device)).to(tensor.dtype)


def _index(units: Sequence[int], like: Tensor) -> Tensor:
    return torch.tensor(list(units), dtype=torch.long, device=like.device)
