"""GPT-2's linears as slicing wants them: Conv1D weights as (outputs, inputs), query, key and value each by itself."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from keepfrac.models.anatomy import Layer

PARTS = ("query", "key", "value")
KINDS = ("weight", "bias")


def opened(tensors: dict[str, Tensor], layer: Layer) -> Layer:
    """Turns a layer's Conv1D tensors, in place, into those of plain linears, and returns their paths.

    The three parts of a fused linear stand at `<path>/query` ... until `closed`. Names that are absent are left out.
    """
    if not layer.transposed:
        return layer
    _transpose(tensors, layer)
    if not layer.fused:
        return layer
    for kind in KINDS:
        if f"{layer.query}.{kind}" in tensors:
            whole = tensors.pop(f"{layer.query}.{kind}")
            for part, tensor in zip(PARTS, whole.chunk(len(PARTS)), strict=True):
                tensors[f"{layer.query}/{part}.{kind}"] = tensor
    query, key, value = (f"{layer.query}/{part}" for part in PARTS)
    return replace(layer, query=query, key=key, value=value)


def closed(tensors: dict[str, Tensor], layer: Layer) -> None:
    """Takes back, in place, what `opened` did; `layer` is the one that was given to it."""
    if not layer.transposed:
        return
    for kind in KINDS if layer.fused else ():
        names = [f"{layer.query}/{part}.{kind}" for part in PARTS]
        if all(name in tensors for name in names):
            tensors[f"{layer.query}.{kind}"] = torch.cat([tensors.pop(name) for name in names])
    _transpose(tensors, layer)


def _transpose(tensors: dict[str, Tensor], layer: Layer) -> None:
    for path in layer.linears:
        if f"{path}.weight" in tensors:
            tensors[f"{path}.weight"] = tensors[f"{path}.weight"].t().contiguous()
