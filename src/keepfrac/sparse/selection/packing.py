"""What is kept of an activation: its layouts, its bytes, and how to unpack it.

A `Kept` is a few tensors for `save_for_backward` and a `PackedLayout` of plain Python values that says how to read
them. For X (batch, length, features), tokens = batch * length:

| layout  | tensors                                                                  | bytes                     |
| ------- | ------------------------------------------------------------------------ | ------------------------- |
| columns | values (tokens, k), int32 columns (k)                                    | k * (tokens * item + 4)   |
| rows    | values (k, features), int32 tokens (k)                                   | k * (features * item + 4) |
| series  | values (k, length), int32 indices (k) among the batch * features columns  | k * (length * item + 4)   |
| blocks  | values (k, length), int32 indices (k) among the batch * features blocks   | k * (length * item + 4)   |
| bits    | values (k), one bit per number                                           | k * item + numbers / 8    |

Values have the dtype of X. `smaller` says beforehand, from the shapes alone, whether what would be kept takes fewer
bytes than X itself; where it does not, the caller saves X.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from keepfrac.sparse.context import Padding
from keepfrac.sparse.selection.selectors import Selector
from keepfrac.tensors.bits import flat_positions, unpack_bits

Shape = tuple[int, int, int]
_INDEX_BYTES = 4


class PackedLayout(NamedTuple):
    """How to read the tensors of a `Kept`: the kind of the table above and the shape of X."""

    kind: str
    shape: Shape


class Kept(NamedTuple):
    """What is kept of an activation.

    Attributes:
        layout: how to read the tensors.
        tensors: for `save_for_backward`.
        kept: numbers kept, of those of real tokens.
        of: numbers of real tokens.
    """

    layout: PackedLayout
    tensors: tuple[Tensor, ...]
    kept: int
    of: int

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors)


def real_tokens(shape: Shape, padding: Padding | None) -> tuple[int, ...]:
    """Returns the number of real tokens of each sample."""
    return (shape[1],) * shape[0] if padding is None else padding.counts


def real_numbers(shape: Shape, padding: Padding | None) -> list[int]:
    """Returns how many numbers of each sample belong to real tokens."""
    square = padding is not None and padding.square
    return [count * (count if square else shape[2]) for count in real_tokens(shape, padding)]


def budgets(shape: Shape, selector: Selector, padding: Padding | None) -> list[int]:
    """Returns how many units are kept, for each group that competes (the batch, or each sample)."""
    _, length, features = shape
    counts = real_tokens(shape, padding)
    square = padding is not None and padding.square
    if selector.unit == "column" and selector.scope == "batch":
        return [selector.budget(features) if sum(counts) else 0]
    units: dict[str, Sequence[float]] = {
        "column": [(count if square else features) if count else 0 for count in counts],
        "token": counts,
        "block": [count * features / length for count in counts],  # of `length` numbers each
        "element": real_numbers(shape, padding),
    }
    competing = units[selector.unit]
    return [selector.budget(n) for n in (competing if selector.scope == "sample" else [sum(competing)])]


def expected_bytes(shape: Shape, item: int, selector: Selector, padding: Padding | None) -> int:
    """Returns the bytes of what would be kept of an activation of `shape` and `item` bytes per number."""
    batch, length, features = shape
    units = sum(budgets(shape, selector, padding))
    if selector.unit == "element":
        return units * item + -(-batch * length * features // 8)
    column = batch * length if selector.scope == "batch" else length
    width = {"column": column, "token": features, "block": length}[selector.unit]
    return units * (width * item + _INDEX_BYTES)


def smaller(shape: Shape, item: int, selector: Selector, padding: Padding | None, extra: int = 0) -> bool:
    """Returns whether what would be kept, and `extra` bytes, take less than the dense activation."""
    dense = shape[0] * shape[1] * shape[2] * item
    return expected_bytes(shape, item, selector, padding=padding) + extra < dense


def unpack(layout: PackedLayout, tensors: tuple[Tensor, ...]) -> Tensor:
    """Returns the activation with zeros where nothing was kept, (batch, length, features)."""
    batch, length, features = layout.shape
    values, where = tensors
    if layout.kind == "bits":
        flat = values.new_zeros(batch * length * features)
        return flat.index_copy_(0, flat_positions(unpack_bits(where, flat.numel())), values).view(layout.shape)
    if layout.kind == "columns":
        return values.new_zeros(batch * length, features).index_copy_(1, where.long(), values).view(layout.shape)
    if layout.kind == "rows":
        return values.new_zeros(batch * length, features).index_copy_(0, where.long(), values).view(layout.shape)
    units = values.new_zeros(batch * features, length).index_copy_(0, where.long(), values)
    return units.view(layout.shape) if layout.kind == "blocks" else units.view(batch, features, length).mT


def unpack_or_whole(layout: PackedLayout | None, tensors: tuple[Tensor, ...]) -> Tensor:
    """Returns the activation that was saved: its kept part unpacked, or all of it where `layout` is None."""
    return tensors[0] if layout is None else unpack(layout, tensors)
