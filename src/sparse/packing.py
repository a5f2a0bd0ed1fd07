"""Pack an activation into what a selector keeps of it, and unpack it again.

`keep` takes X (batch, length, features) and returns a `Kept`: a few tensors for `save_for_backward` and a `Layout` of
plain Python values that says how to read them:

| layout  | tensors                                                                    | bytes                        |
| ------- | -------------------------------------------------------------------------- | ---------------------------- |
| columns | values (tokens, k), int32 columns (k)                                      | k * (tokens * item + 4)      |
| rows    | values (k, features), int32 tokens (k)                                     | k * (features * item + 4)    |
| series  | values (k, length), int32 places (k) among the (batch * features) columns  | k * (length * item + 4)      |
| blocks  | values (k, length), int32 places (k) among the (batch * features) blocks   | k * (length * item + 4)      |
| bits    | values (k), one bit per number (tokens * features / 8)                     | k * item + numbers / 8       |

Values have the dtype of X; positions are int32. `smaller` says beforehand, from the shapes alone, whether what would
be kept takes fewer bytes than X itself; where it does not, the caller saves X.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from src.sparse.bits import exact_top, flat_positions, magnitude_keys, pack_bits, unpack_bits
from src.sparse.context import Draw, Padding
from src.sparse.selectors import Selector, choose, column_scores, row_scores, shifted_relu_boundary

_INDEX_BYTES = 4


class Layout(NamedTuple):
    """How to read the tensors of a `Kept`: the kind of the table above and the shape of X."""

    kind: str
    shape: tuple[int, int, int]


class Kept(NamedTuple):
    """What is kept of an activation.

    Attributes:
        layout: how to read the tensors.
        tensors: for `save_for_backward`.
        kept, of: numbers kept, of the numbers of real tokens.
    """

    layout: Layout
    tensors: tuple[Tensor, ...]
    kept: int
    of: int

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors)


def _counts(shape: tuple[int, int, int], padding: Padding | None) -> tuple[int, ...]:
    return (shape[1],) * shape[0] if padding is None else padding.counts


def budgets(shape: tuple[int, int, int], selector: Selector, padding: Padding | None) -> list[int]:
    """Return how many units are kept, for each group that competes (the batch, or each sample)."""
    _, length, features = shape
    counts = _counts(shape, padding)
    groups = [sum(counts)] if selector.scope == "batch" else list(counts)
    if selector.unit == "column":
        return [selector.budget(features) if count else 0 for count in groups]
    # In units: a token is one, a block is `length` numbers, an element is one number.
    per_token = {"token": 1, "block": features / length, "element": features}[selector.unit]
    return [selector.budget(count * per_token) for count in groups]


def expected_bytes(shape: tuple[int, int, int], item: int, selector: Selector, padding: Padding | None) -> int:
    """Return the bytes of what would be kept of an activation of `shape` and `item` bytes per number."""
    batch, length, features = shape
    units = sum(budgets(shape, selector, padding))
    if selector.unit == "element":
        return units * item + -(-batch * length * features // 8)
    column = batch * length if selector.scope == "batch" else length
    width = {"column": column, "token": features, "block": length}[selector.unit]
    return units * (width * item + _INDEX_BYTES)


def smaller(
    shape: tuple[int, int, int], item: int, selector: Selector, padding: Padding | None, extra: int = 0
) -> bool:
    """Return whether what is kept, and `extra` bytes, take less than the dense activation."""
    dense = shape[0] * shape[1] * shape[2] * item
    return expected_bytes(shape, item, selector, padding) + extra < dense


def keep(x: Tensor, selector: Selector, padding: Padding | None, draw: Draw) -> Kept:
    """Return what `selector` keeps of `x`.

    Args:
        x: (batch, length, features), detached.
        selector: what to keep.
        padding: of this batch; None where every token is real.
        draw: randomness of this site and step.
    """
    shape = (x.shape[0], x.shape[1], x.shape[2])
    x = x.contiguous()
    of = sum(_counts(shape, padding)) * shape[2]
    ks = budgets(shape, selector, padding)
    generator = draw.generator(x.device)
    if selector.unit == "element":
        return _keep_elements(x, selector, padding, draw, generator, ks, of)
    if selector.unit == "column" and selector.scope == "batch":
        return _keep_columns(x, selector, padding, draw, generator, ks[0], of)
    if selector.unit == "token":
        return _keep_rows(x, selector, padding, draw, generator, ks, of)
    return _keep_series(x, selector, padding, draw, generator, ks, of)


def unpack(layout: Layout, tensors: tuple[Tensor, ...]) -> Tensor:
    """Return the activation with zeros where nothing was kept, (batch, length, features)."""
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


def _scaled(values: Tensor, weight: Tensor | None) -> Tensor:
    """`values` with each row multiplied by its weight, in the dtype of the values."""
    if weight is None:
        return values
    return values * weight.to(values.dtype).reshape(-1, *[1] * (values.dim() - 1))


def _keep_columns(
    x: Tensor, selector: Selector, padding: Padding | None, draw: Draw, generator: torch.Generator, k: int, of: int
) -> Kept:
    flat, features = x.flatten(0, 1), x.shape[2]
    real = None if padding is None else padding.mask.reshape(-1)
    scores = column_scores(flat, selector.norm, real) if selector.needs_scores else None
    columns, weight = choose(scores, features, k, selector, draw, generator)
    # On a CPU index_select along rows of 2-byte numbers is slower than advanced indexing, of 4-byte numbers faster.
    values = flat[:, columns] if flat.element_size() == 2 else flat.index_select(1, columns)
    if weight is not None:
        values = values * weight.to(values.dtype)
    return Kept(Layout("columns", tuple(x.shape)), (values, columns.int()), of // features * k, of)


def _choose_in_groups(
    scores: Tensor | None,
    groups: list[Tensor | range],
    ks: list[int],
    selector: Selector,
    draw: Draw,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor | None]:
    """Choose ks[i] units of groups[i] (positions), each group by itself; return positions and weights."""
    positions, weights = [], []
    for group, k in zip(groups, ks, strict=True):
        if isinstance(group, range):
            within = None if scores is None else scores[group.start : group.stop]
            picked, weight = choose(within, len(group), k, selector, draw, generator)
            positions.append(picked + group.start)
        else:
            within = None if scores is None else scores[group]
            picked, weight = choose(within, len(group), k, selector, draw, generator)
            positions.append(group[picked])
        weights.append(weight)
    scales = [weight for weight in weights if weight is not None]
    return torch.cat(positions), torch.cat(scales) if scales else None


def _groups(shape: tuple[int, int, int], selector: Selector, padding: Padding | None) -> list[Tensor | range]:
    """Positions of the tokens that compete with one another: real ones alone."""
    batch, length, _ = shape
    if padding is None:
        return [range(batch * length)] if selector.scope == "batch" else [
            range(b * length, (b + 1) * length) for b in range(batch)
        ]
    return [padding.rows] if selector.scope == "batch" else list(padding.rows.split(list(padding.counts)))


def _keep_rows(
    x: Tensor, selector: Selector, padding: Padding | None, draw: Draw, generator: torch.Generator, ks: list[int],
    of: int,
) -> Kept:
    flat, shape = x.flatten(0, 1), (x.shape[0], x.shape[1], x.shape[2])
    scores = row_scores(flat, selector.norm) if selector.needs_scores else None
    groups = _groups(shape, selector, padding)
    rows, weight = _choose_in_groups(scores, groups, ks, selector, draw, generator)
    values = _scaled(flat.index_select(0, rows), weight)
    return Kept(Layout("rows", shape), (values, rows.int()), len(rows) * shape[2], of)


def _keep_series(
    x: Tensor, selector: Selector, padding: Padding | None, draw: Draw, generator: torch.Generator, ks: list[int],
    of: int,
) -> Kept:
    """Units of `length` numbers: blocks in memory, or the columns of each sample."""
    shape = (x.shape[0], x.shape[1], x.shape[2])
    batch, length, features = shape
    if padding is not None:
        x = x * padding.mask[..., None]
    kind = "blocks" if selector.unit == "block" else "series"
    units = (x if kind == "blocks" else x.mT).reshape(batch * features, length)
    scores = row_scores(units, selector.norm) if selector.needs_scores else None
    groups: list[Tensor | range]
    if selector.scope == "sample":
        groups = [range(b * features, (b + 1) * features) for b in range(batch)]
    else:
        groups = [range(batch * features)]
    if kind == "blocks" and padding is not None:
        filled = padding.mask[..., None].expand(shape).reshape(batch * features, length).any(1)
        groups = [group.start + filled[group.start : group.stop].nonzero().reshape(-1) for group in groups]  # type: ignore[union-attr]
    places, weight = _choose_in_groups(scores, groups, ks, selector, draw, generator)
    values = _scaled(units.index_select(0, places), weight)
    counts = _counts(shape, padding)
    kept = len(places) * length if kind == "blocks" else sum(k * c for k, c in zip(ks, counts, strict=True))
    return Kept(Layout(kind, shape), (values, places.int()), min(kept, of), of)


def _keep_elements(
    x: Tensor, selector: Selector, padding: Padding | None, draw: Draw, generator: torch.Generator, ks: list[int],
    of: int,
) -> Kept:
    shape, weight = (x.shape[0], x.shape[1], x.shape[2]), None
    flat = x.reshape(-1)
    if selector.rule == "top":
        mask = exact_top(_keys(x, padding).view(len(ks), -1), ks)
        places = flat_positions(mask)
    elif selector.rule == "shifted_relu":
        places, mask = _above(x, selector, padding, sum(ks))
    else:
        scores = x.abs().float().reshape(-1) if selector.needs_scores else None
        groups = _element_groups(shape, selector, padding, x.device)
        places, weight = _choose_in_groups(scores, groups, ks, selector, draw, generator)
        mask = torch.zeros(len(flat), dtype=torch.bool, device=x.device).index_fill_(0, places, True)
    values = _scaled(flat.index_select(0, places), weight)
    return Kept(Layout("bits", shape), (values, pack_bits(mask)), len(places), of)


def _keys(x: Tensor, padding: Padding | None) -> Tensor:
    keys = magnitude_keys(x)
    if padding is not None:
        keys.view(-1, x.shape[2])[~padding.mask.reshape(-1)] = -1
    return keys


def _above(x: Tensor, selector: Selector, padding: Padding | None, k: int) -> tuple[Tensor, Tensor]:
    """Places and mask of the elements above the shifted ReLU's boundary.

    The boundary assumes a normal distribution. Where the activation is so far from one that more than half as much
    again as asked lies above it, the k largest of all are taken, so that the bytes stay near what was asked.
    """
    real = None if padding is None else padding.mask
    mask = x > shifted_relu_boundary(x.flatten(0, 1), selector.keep_frac, None if real is None else real.reshape(-1))
    if real is not None:
        mask &= real[..., None]
    places = flat_positions(mask)
    if len(places) <= k + k // 2:
        return places, mask
    mask = exact_top(_keys(x, padding).view(1, -1), [k])
    return flat_positions(mask), mask


def _element_groups(
    shape: tuple[int, int, int], selector: Selector, padding: Padding | None, device: torch.device
) -> list[Tensor | range]:
    batch, length, features = shape
    if padding is None:
        size = batch * length * features // (1 if selector.scope == "batch" else batch)
        return [range(start, start + size) for start in range(0, batch * length * features, size)]
    numbers = padding.rows[:, None] * features + torch.arange(features, device=device)
    if selector.scope == "batch":
        return [numbers.reshape(-1)]
    return [part.reshape(-1) for part in numbers.split(list(padding.counts))]
