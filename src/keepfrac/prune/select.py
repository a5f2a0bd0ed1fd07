"""From scores to the structure that meets an exact budget: by sorting, never by a threshold.

Units of a layer are sorted by score and dealt into groups of `align`, so alignment comes before the check of the
cost. All groups of a pool are then taken from the best on while they fit; one that does not fit closes its layer,
and cheaper groups may still fill what is left. The result never exceeds the budget and falls short of it by less
than the cheapest group that was left over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from keepfrac.errors import UserError
from keepfrac.prune.budget import FAMILIES, Group, Spending, UnitScores
from keepfrac.prune.cost import Cost, fraction
from keepfrac.prune.scores import layers_to_keep
from keepfrac.prune.structure import Indices, LayerCounts, Structure, keep_layers

Scope = Literal["global", "family", "layer"]
SCOPES = get_args(Scope)


@dataclass(frozen=True)
class Limits:
    """What a selection must respect, per family ("heads", "neurons", "ranks").

    Args:
        align: kept counts are multiples of this (or the full count), >= 1.
        floor: a sub-layer that stays keeps at least this many, >= 1.
        allow_empty: whether a sub-layer may lose all its units.
    """

    align: Mapping[str, int] = field(default_factory=dict)
    floor: Mapping[str, int] = field(default_factory=dict)
    allow_empty: bool = False

    def __post_init__(self) -> None:
        for name in ("align", "floor"):
            for family, value in getattr(self, name).items():
                if family not in FAMILIES or not isinstance(value, int) or value < 1:
                    raise UserError(
                        f"{name} {value} of {family}: it must be a whole number >= 1, of one of {', '.join(FAMILIES)}"
                    )

    def group_sizes(self, family: str, units: int) -> list[int]:
        """Sizes of the groups of `units` units: the floor rounded up to the alignment, then one alignment each."""
        align = self.align.get(family, 1)
        first = min(units, -(-self.floor.get(family, 1) // align) * align)
        whole, rest = divmod(units - first, align)
        return [size for size in (first, *[align] * whole, rest) if size]


def select(scores: UnitScores, cost: Cost, keep_frac: float, limits: Limits, scope: Scope) -> Structure:
    """Returns the structure of the best units whose exact cost is at most `keep_frac` of the dense model's.

    Args:
        scores: of the model as it stands. Families without scores are kept whole and paid for.
        cost: counts structures against the original dense model.
        keep_frac: the budget, a share of the dense cost, in (0, 1].
        limits: alignment, floors, and whether a sub-layer may be emptied.
        scope: `global` sorts all units together (scores must be comparable between families), `family` gives each
            family the same share of its own cost, `layer` gives each family of each layer the same share (uniform
            layers). What heads leave over goes to the neurons.

    Raises:
        UserError: the budget is outside the reachable range (the message says it), or a score is not a number.
    """
    groups = _groups(scores, limits)
    state = Spending(scores, cost)
    _check_reachable(groups, scores, cost, keep_frac)
    for group in groups:
        if group.must:
            state.take(group)
    for part, families in _pools(scope, len(scores.counts)):
        pool = [g for g in groups if g.component[0] in part and g.component[1] in families and not g.must]
        budget = state.budget(part, families, keep_frac)
        # among equals a layer's two sub-layers come together, where they were scored as one
        state.fill(sorted(pool, key=lambda g: (-g.score, g.component[0] if scores.whole else 0)), budget)
    if scores.together:
        state.drop_halves()
    return state.structure()


def select_counts(scores: Sequence[Tensor], count: int, floor: int, align: int, even: bool) -> list[Indices]:
    """Returns the `count` best of all layers' units (exactly), or the count // layers best of each where `even`.

    Args:
        scores: per layer (units,).
        count: units to keep in all.
        floor: kept in each layer at least; 0 allows an empty layer.
        align: per-layer counts are multiples of this.
        even: the same count in every layer.

    Raises:
        UserError: the count cannot be met exactly; the message says the reachable range.
    """
    ordered = [torch.sort(s.detach().double().cpu(), descending=True, stable=True) for s in scores]
    sizes = [len(s) for s in scores]
    low = sum(-(-min(floor, n) // align) * align for n in sizes)
    step = align * len(scores) if even else align
    if not low <= count <= sum(sizes) or count % step:
        raise UserError(
            f"{count} units over {len(scores)} layers: reachable are multiples of {step} from {low} to {sum(sizes)}"
        )
    if even:
        kept = [count // len(scores)] * len(scores)
    else:
        kept = [-(-min(floor, n) // align) * align for n in sizes]
        chunks = [
            (values[start : start + align].mean().item(), i)
            for i, (values, _) in enumerate(ordered)
            for start in range(kept[i], sizes[i] - align + 1, align)
        ]
        for _, i in sorted(chunks, key=lambda c: -c[0])[: (count - sum(kept)) // align]:
            kept[i] += align
    if sum(kept) != count or any(k > n for k, n in zip(kept, sizes, strict=True)):
        raise UserError(f"{count} units cannot be kept exactly with layers of {sizes} in multiples of {align}")
    return [tuple(sorted(order[:k].tolist())) for (_, order), k in zip(ordered, kept, strict=True)]


def select_layers(counts: Sequence[LayerCounts], cost: Cost, keep_frac: float, order: str) -> Structure:
    """Returns the structure of the most whole layers whose cost is at most `keep_frac` of the dense model's.

    Args:
        counts: of the model as it stands.
        cost: counts structures against the original dense model.
        keep_frac: the budget, in (0, 1].
        order: `top` drops the last layers, `alternate` spreads the dropped ones evenly.

    Raises:
        UserError: not even one layer is within the budget; the message says the range.
    """
    for num in range(len(counts), 0, -1):
        kept = layers_to_keep(len(counts), num, order)
        if fraction(cost, [counts[i] for i in kept]) <= keep_frac + 1e-9:
            return keep_layers(counts, kept)
    least, most = (float(fraction(cost, some)) for some in (counts[:1], counts))
    raise UserError(
        f"keep_frac {keep_frac:g} of the {cost.unit} cannot be reached by whole layers: it can be "
        f"{least:.4f} to {most:.4f}"
    )


def _groups(scores: UnitScores, limits: Limits) -> list[Group]:
    groups = []
    for component, values in scores.components().items():
        if not torch.isfinite(values).all():
            raise UserError(f"a score of layer {component[0]}'s {component[1]} is not a finite number")
        values, order = torch.sort(values, descending=True, stable=True)
        start = 0
        count = len(values)
        sizes = [count] * bool(count) if component[1] in scores.whole else limits.group_sizes(component[1], count)
        for n, size in enumerate(sizes):
            part = slice(start, start + size)
            must = n == 0 and (not limits.allow_empty or component[1] == "ranks")
            groups.append(Group(component, order[part].tolist(), values[part].mean().item(), must))
            start += size
    return groups


def _check_reachable(groups: list[Group], scores: UnitScores, cost: Cost, keep_frac: float) -> None:
    floor = Spending(scores, cost)
    for group in groups:
        if group.must:
            floor.take(group)
    low, high = floor.spent / cost.dense, float(fraction(cost, scores.counts))
    if not low - 1e-9 <= keep_frac <= max(high, 1e-9) + 1e-9:
        raise UserError(
            f"keep_frac {keep_frac:g} of the {cost.unit} cannot be reached: "
            f"with these floors and alignments it can be {low:.4f} to {high:.4f}"
        )


def _pools(scope: str, num_layers: int) -> list[tuple[Sequence[int], Sequence[str]]]:
    """Which layers and families share a budget, in the order in which they spend it."""
    every = range(num_layers)
    if scope == "global":
        return [(every, FAMILIES)]
    if scope == "family":
        return [(every, (family,)) for family in FAMILIES]
    if scope == "layer":
        return [([i], (family,)) for i in every for family in FAMILIES]
    raise UserError(f"scope is {scope!r}: it must be global, family or layer")
