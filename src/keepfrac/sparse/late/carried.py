"""A block's output carries its own stored form to the next block, which would otherwise have to pack it again.

The stored normalised rows of a LayerNorm serve twice: for that LayerNorm's gradient, and, times gamma plus beta, as
the input of the next linear layers. Between two blocks there is other people's code (the model's loop over layers,
hooks), so the stored form rides on the tensor as an attribute; code that makes a new tensor of it loses it, and then
the next block packs its input itself: more bytes, the same result.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

NO_GRADS = (None,) * 4  # of a block, to its stored input: that has x's
_ATTRIBUTE = "_late_stored"


class Input(NamedTuple):
    """A linear layer's input as it is stored: rows of `data` with `scales`, times gamma plus beta (None: as it is)."""

    data: Any
    scales: Any
    gamma: Tensor | None
    beta: Tensor | None


def attach(y: Tensor, stored: Input) -> Tensor:
    """Makes y carry its stored form, until it is changed in place; returns y."""
    setattr(y, _ATTRIBUTE, (stored, y._version))
    return y


NOTHING = Input(None, None, None, None)


def stored_input(x: Tensor, kernels, kind: torch.dtype, wanted: bool) -> tuple[Input, bool]:
    """Returns x's stored form, and whether it had to be packed for that.

    Args:
        x: (batch, length, width).
        kernels: who packs.
        kind: the format to pack in; x's own dtype keeps x itself.
        wanted: whether it is needed at all.
    """
    if not wanted:
        return NOTHING, False
    stored, version = getattr(x, _ATTRIBUTE, (None, -1))
    if stored is not None and version == x._version:
        return stored, False
    rows = x.detach().reshape(-1, x.shape[-1])
    data, scales = kernels.pack(rows.contiguous(), kind)
    # factors that change nothing: under checkpointing with hooks on saved tensors the repeated pass has lost the stored
    # form, and must save as many tensors of the same shapes as the first
    gamma, beta = x.new_ones(x.shape[-1]), x.new_zeros(x.shape[-1])
    return Input(data, scales, gamma, beta), kind != x.dtype
