"""Applies a selector to an activation: cut it into units, score them, choose, and gather what is kept.

Padding never competes: padded tokens are no candidates, do not enter the score of a column, and read as zeros inside a
block or a sample's column.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from keepfrac.sparse.context import Draw, Padding
from keepfrac.sparse.selection.packing import Kept, PackedLayout, Shape, budgets, real_numbers, real_tokens
from keepfrac.sparse.selection.selectors import Selector, choose_units, column_scores, row_scores, shifted_relu_boundary
from keepfrac.tensors.bits import exact_top, flat_positions, magnitude_keys, pack_bits

# Positions of units that compete with one another: a run of them, or those listed.
Group = range | Tensor


@dataclass(frozen=True)
class _Task:
    """An activation and what to keep of it.

    Attributes:
        x: (batch, length, features), contiguous.
        selector: what to keep.
        padding: of the batch, None where all is real.
        draw: randomness of this site and step.
        generator: made from `draw`, on the device of x; consumed group by group.
        budgets: units to keep, for each group.
        factors: (tokens,), what the scores of token rows are multiplied by; None: 1.
    """

    x: Tensor
    selector: Selector
    padding: Padding | None
    draw: Draw
    generator: torch.Generator
    budgets: list[int]
    factors: Tensor | None = None

    @property
    def shape(self) -> Shape:
        return self.x.shape[0], self.x.shape[1], self.x.shape[2]

    def choose(self, scores: Tensor | None, groups: list[Group]) -> tuple[Tensor, Tensor | None]:
        """Positions of the chosen units, each group by itself, and what to multiply them by."""
        positions, weights = [], []
        for group, k in zip(groups, self.budgets, strict=True):
            if isinstance(group, range):
                within = None if scores is None else scores[group.start : group.stop]
            else:
                within = None if scores is None else scores[group]
            picked, weight = choose_units(
                within, len(group), k, selector=self.selector, draw=self.draw, generator=self.generator
            )
            positions.append(picked + group.start if isinstance(group, range) else group[picked])
            weights.append(weight)
        scales = [weight for weight in weights if weight is not None]
        return torch.cat(positions), torch.cat(scales) if scales else None

    def pack(self, kind: str, values: Tensor, weight: Tensor | None, where: Tensor, kept: int) -> Kept:
        """Returns the result: `values` times `weight` along their first dimension, and where they belong."""
        if weight is not None:
            values = values * weight.to(values.dtype).reshape(-1, *[1] * (values.dim() - 1))
        of = sum(real_numbers(self.shape, self.padding))
        return Kept(PackedLayout(kind, self.shape), (values, where), kept=min(kept, of), of=of)


def keep(x: Tensor, selector: Selector, padding: Padding | None, draw: Draw, factors: Tensor | None = None) -> Kept:
    """Returns what `selector` keeps of `x`.

    Args:
        x: (batch, length, features), detached.
        selector: what to keep.
        padding: of this batch; None where every token is real.
        draw: randomness of this site and step.
        factors: (tokens,), what else the score of a token row is a product of; None: nothing.
    """
    shape = (x.shape[0], x.shape[1], x.shape[2])
    generator = draw.generator(x.device)
    task = _Task(
        x.contiguous(), selector, padding, draw=draw, generator=generator,
        budgets=budgets(shape, selector, padding), factors=factors,
    )  # fmt: skip
    if selector.unit == "element":
        return _keep_elements(task)
    if selector.unit == "token":
        return _keep_rows(task)
    return _keep_columns(task) if selector.unit == "column" and selector.scope == "batch" else _keep_series(task)


def _keep_columns(task: _Task) -> Kept:
    """Columns of all tokens."""
    flat, selector = task.x.flatten(0, 1), task.selector
    real = None if task.padding is None else task.padding.mask.reshape(-1)
    scores = column_scores(flat, selector.norm, real) if selector.needs_scores else None
    columns, weight = task.choose(scores, [range(flat.shape[1])])
    # As fast as index_select for 4-byte numbers on a CPU, and more than twice as fast for 2-byte ones.
    values = flat.gather(1, columns.expand(len(flat), -1))
    if weight is not None:
        values = values * weight.to(values.dtype)
    kept = sum(real_tokens(task.shape, task.padding)) * len(columns)
    return task.pack("columns", values, None, where=columns.int(), kept=kept)


def _keep_rows(task: _Task) -> Kept:
    """Token rows."""
    flat = task.x.flatten(0, 1)
    scores = row_scores(flat, task.selector.norm) if task.selector.needs_scores else None
    if scores is not None and task.factors is not None:
        scores = scores * task.factors
    rows, weight = task.choose(scores, _token_groups(task))
    kept = sum(real_numbers(task.shape, task.padding)) * len(rows) // max(sum(real_tokens(task.shape, task.padding)), 1)
    return task.pack("rows", flat.index_select(0, rows), weight, where=rows.int(), kept=kept)


def _token_groups(task: _Task) -> list[Group]:
    batch, length, _ = task.shape
    if task.padding is not None:
        rows = task.padding.rows
        return [rows] if task.selector.scope == "batch" else list(rows.split(list(task.padding.counts)))
    size = length if task.selector.scope == "sample" else batch * length
    return [range(start, start + size) for start in range(0, batch * length, size)]


def _keep_series(task: _Task) -> Kept:
    """Units of `length` numbers: blocks in memory, or the columns of each sample."""
    batch, length, features = task.shape
    x = task.x if task.padding is None else task.x * task.padding.mask[..., None]
    kind = "blocks" if task.selector.unit == "block" else "series"
    units = (x if kind == "blocks" else x.mT).reshape(batch * features, length)
    scores = row_scores(units, task.selector.norm) if task.selector.needs_scores else None
    positions, weight = task.choose(scores, _series_groups(task, kind))
    counts = real_tokens(task.shape, task.padding)
    series = sum(k * count for k, count in zip(task.budgets, counts, strict=False))
    kept = len(positions) * length if kind == "blocks" else series
    return task.pack(kind, units.index_select(0, positions), weight, where=positions.int(), kept=kept)


def _series_groups(task: _Task, kind: str) -> list[Group]:
    batch, length, features = task.shape
    size = features if task.selector.scope == "sample" else batch * features
    groups = [range(start, start + size) for start in range(0, batch * features, size)]
    if task.padding is None or (kind == "series" and not task.padding.square):
        return list(groups)
    real = task.padding.mask.reshape(-1)
    if kind == "blocks":  # those that hold a number of a real token
        real = task.padding.mask[..., None].expand(task.shape).reshape(batch * features, length).any(1)
    return [group.start + real[group.start : group.stop].nonzero().reshape(-1) for group in groups]


def _keep_elements(task: _Task) -> Kept:
    """Single numbers."""
    flat, weight = task.x.reshape(-1), None
    if task.selector.rule == "top":
        mask = exact_top(_keys(task).view(len(task.budgets), -1), task.budgets)
        positions = flat_positions(mask)
    elif task.selector.rule == "shifted_relu":
        positions, mask = _above(task)
    else:
        scores = task.x.abs().float().reshape(-1) if task.selector.needs_scores else None
        positions, weight = task.choose(scores, _element_groups(task))
        mask = torch.zeros(len(flat), dtype=torch.bool, device=flat.device).index_fill_(0, positions, True)
    return task.pack("bits", flat.index_select(0, positions), weight, where=pack_bits(mask), kept=len(positions))


def _keys(task: _Task) -> Tensor:
    """Magnitudes as integers, -1 for padding."""
    keys = magnitude_keys(task.x)
    if task.padding is not None:
        keys.view(-1, task.shape[2])[~task.padding.mask.reshape(-1)] = -1
        if task.padding.square:
            keys.masked_fill_(~task.padding.mask[:, None], -1)
    return keys


def _above(task: _Task) -> tuple[Tensor, Tensor]:
    """Positions and mask of the elements above the shifted ReLU's boundary.

    The boundary assumes a normal distribution. Where the activation is so far from one that more than half as much
    again as asked lies above it, the largest are taken, as many as asked.
    """
    k, real = sum(task.budgets), None if task.padding is None else task.padding.mask
    flat_real = None if real is None else real.reshape(-1)
    mask = task.x > shifted_relu_boundary(task.x.flatten(0, 1), task.selector.keep_frac, flat_real)
    if real is not None:
        mask &= real[..., None]
    positions = flat_positions(mask)
    if len(positions) > k + k // 2 or len(positions) > _ceiling(task):
        mask = exact_top(_keys(task).view(1, -1), [k])
        positions = flat_positions(mask)
    return positions, mask


def _ceiling(task: _Task) -> int:
    """The largest number of elements whose values and bits take less than the dense activation."""
    numbers, item = task.x.numel(), task.x.element_size()
    return numbers - -(-numbers // (8 * item)) - 1


def _element_groups(task: _Task) -> list[Group]:
    """Single numbers that compete with one another: those of real tokens."""
    numbers, samples = task.x.numel(), task.shape[0] if task.selector.scope == "sample" else 1
    if task.padding is None:
        size = numbers // samples
        return [range(start, start + size) for start in range(0, numbers, size)]
    real = task.padding.mask[..., None].expand(task.shape)
    if task.padding.square:
        real = real & task.padding.mask[:, None]
    positions = flat_positions(real.contiguous())
    return [positions] if samples == 1 else list(positions.split(real_numbers(task.shape, task.padding)))
