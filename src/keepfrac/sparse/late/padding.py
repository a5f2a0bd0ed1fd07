"""A model's attention mask, as the blocks need it: what is added to the scores of each key, and how many are real."""

import weakref
from typing import NamedTuple

import torch
from torch import Tensor

from keepfrac.errors import UserError


class Padding(NamedTuple):
    """Which tokens of a batch are real.

    Args:
        bias: (batch, length) floats to add to the scores of each key, 0 where it is real; None where all are.
        real: the number of real tokens.
    """

    bias: Tensor | None
    real: int


def _per_key(mask: Tensor) -> Tensor:
    """(batch, length) of a 4-D mask (batch, 1, queries, length) that hides the same keys from every query.

    Raises:
        UserError: it does not.
    """
    if mask.dim() != 4 or mask.shape[1] != 1:
        raise UserError(f"method late needs an attention mask of shape (batch, length); got {tuple(mask.shape)}")
    row = mask[:, 0, 0]
    if not torch.equal(mask, row[:, None, None].expand_as(mask)):
        raise UserError("method late needs the same attention mask for every query: causal masks do not fit")
    return row


def read_padding(mask: Tensor | None, x: Tensor) -> Padding:
    """Reads the mask that reaches a layer.

    Args:
        mask: None (all real); (batch, length) with 1 = real; or (batch, 1, queries, length), booleans with True = real
            or floats to be added to the scores.
        x: (batch, length, width), the layer's input.

    Raises:
        UserError: a mask that differs between queries, or of another shape.
    """
    batch, length = x.shape[:2]
    if mask is None:
        return Padding(None, batch * length)
    row = mask if mask.dim() == 2 else _per_key(mask)
    row = row.expand(batch, length)
    if mask.dim() == 2 or not row.dtype.is_floating_point:
        row = torch.zeros(batch, length, device=x.device).masked_fill_(row == 0, -torch.inf)
    real = int((row == 0).sum())
    return Padding(None if real == batch * length else row.float().contiguous(), real)


class PaddingReader:
    """`read_padding`, once for all layers that are given the same mask."""

    def __init__(self) -> None:
        self._last: tuple | None = None

    def __call__(self, mask: Tensor | None, x: Tensor) -> Padding:
        if mask is None:
            return read_padding(None, x)
        if self._last is None or self._last[0]() is not mask or self._last[1] != mask._version:
            self._last = (weakref.ref(mask), mask._version, read_padding(mask, x))
        return self._last[2]

    def __deepcopy__(self, memo: dict) -> "PaddingReader":
        return PaddingReader()

    def __reduce__(self) -> tuple:
        return (PaddingReader, ())
