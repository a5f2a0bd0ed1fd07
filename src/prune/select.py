"""From scores to the structure that meets an exact budget: by sorting, never by a threshold.

Units of a layer are sorted by score and dealt into groups of `align`, so alignment comes before the check of the
cost. All groups of a pool are then taken from the best on while they fit; one that does not fit closes its layer,
and cheaper groups may still fill what is left. The result never exceeds the budget and falls short of it by less
than the cheapest group that was left over.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from src.errors import UserError
from src.prune.cost import Cost, fraction
from src.prune.structure import Indices, LayerCounts, LayerStructure, Structure

Scope = Literal["global", "family", "layer"]
FAMILIES = ("heads", "neurons", "ranks")
PARTS = ("attention", "ffn")
Place = tuple[int, str, str]
"""(layer, family, role): the role is empty for heads and neurons."""


@dataclass(frozen=True)
class UnitScores:
    """How much each unit matters, higher is better; None for a family that is not pruned.

    Args:
        counts: what the model has.
        heads: per layer (heads,).
        neurons: per layer (neurons,).
        ranks: per layer, role -> (rank,).
    """

    counts: Sequence[LayerCounts]
    heads: Sequence[Tensor] | None = None
    neurons: Sequence[Tensor] | None = None
    ranks: Sequence[Mapping[str, Tensor]] | None = None

    def places(self) -> dict[Place, Tensor]:
        """Every scored vector by its place, families in order, on the CPU in float64."""
        found: dict[Place, Tensor] = {}
        for family, scored in (("heads", self.heads), ("neurons", self.neurons)):
            found |= {(i, family, ""): s for i, s in enumerate(scored or ())}
        found |= {
            (i, "ranks", role): s for i, by_role in enumerate(self.ranks or ()) for role, s in by_role.items()
        }
        if not found:
            raise UserError("no family of units is scored: there is nothing to prune")
        return {place: s.detach().double().cpu() for place, s in found.items()}


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
                if family not in FAMILIES or value < 1:
                    raise UserError(
                        f"{name} {value} of {family}: it must be >= 1, of one of {', '.join(FAMILIES)}"
                    )

    def group_sizes(self, family: str, units: int) -> list[int]:
        """Sizes of the groups of `units` units: the floor rounded up to the alignment, then one alignment each."""
        align = self.align.get(family, 1)
        first = min(units, -(-self.floor.get(family, 1) // align) * align)
        sizes = [first] if first else []
        while sum(sizes) < units:
            sizes.append(min(align, units - sum(sizes)))
        return sizes


@dataclass
class _Group:
    place: Place
    units: list[int]
    score: float
    must: bool


def select(scores: UnitScores, cost: Cost, keep_frac: float, limits: Limits, scope: Scope) -> Structure:
    """The structure of the best units whose exact cost is at most `keep_frac` of the dense model's.

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
    state = _State(scores, cost)
    _check_reachable(groups, scores, cost, keep_frac)
    for group in groups:
        if group.must:
            state.take(group)
    for part, families in _pools(scope, len(scores.counts)):
        pool = [g for g in groups if g.place[0] in part and g.place[1] in families and not g.must]
        budget = state.budget(part, families, keep_frac)
        state.fill(sorted(pool, key=lambda g: -g.score), budget)
    return state.structure()


def select_counts(scores: Sequence[Tensor], count: int, floor: int, align: int, even: bool) -> list[Indices]:
    """The `count` best of all layers' units (exactly), or the count // layers best of each where `even`.

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
        raise UserError(
            f"{count} units cannot be kept exactly with layers of {sizes} in multiples of {align}"
        )
    return [tuple(sorted(order[:k].tolist())) for (_, order), k in zip(ordered, kept, strict=True)]


class _State:
    """The counts and units taken so far, with the cost kept up to date sub-layer by sub-layer."""

    def __init__(self, scores: UnitScores, cost: Cost) -> None:
        self.cost, self.scores = cost, scores
        self.units: dict[Place, list[int]] = {place: [] for place in scores.places()}
        self.sub_layers = {
            (i, part): self._sub_cost(i, part, None)
            for i in range(len(scores.counts))
            for part in ("attention", "ffn")
        }
        self.spent = sum(self.sub_layers.values())
        self.full = {
            (i, "attention"): float(cost.attention(c.heads, c.ranks)) for i, c in enumerate(scores.counts)
        }
        self.full |= {(i, "ffn"): float(cost.ffn(c.neurons, c.ranks)) for i, c in enumerate(scores.counts)}

    def _count(self, layer: int, family: str, role: str, extra: _Group | None) -> int:
        place = (layer, family, role)
        if place not in self.units:
            have = self.scores.counts[layer]
            return int(have.ranks[role] if family == "ranks" else getattr(have, family))
        return len(self.units[place]) + (len(extra.units) if extra and extra.place == place else 0)

    def _sub_cost(self, layer: int, part: str, extra: _Group | None) -> float:
        ranks = {role: self._count(layer, "ranks", role, extra) for role in self.scores.counts[layer].ranks}
        if part == "attention":
            return float(self.cost.attention(self._count(layer, "heads", "", extra), ranks if ranks else {}))
        return float(self.cost.ffn(self._count(layer, "neurons", "", extra), ranks if ranks else {}))

    @staticmethod
    def part_of(place: Place) -> str:
        return "ffn" if place[1] == "neurons" or place[2].startswith("ffn") else "attention"

    def price(self, group: _Group) -> float:
        key = (group.place[0], self.part_of(group.place))
        return self._sub_cost(*key, group) - self.sub_layers[key]

    def take(self, group: _Group) -> float:
        price = self.price(group)
        self.units[group.place] += group.units
        self.sub_layers[group.place[0], self.part_of(group.place)] += price
        self.spent += price
        return price

    def budget(self, layers: Sequence[int], families: Sequence[str], keep_frac: float) -> float:
        """What a pool may still spend: its layers' share of the whole budget; heads alone: attention's share."""
        share = keep_frac * self.cost.dense / sum(self.full.values())
        parts = ("attention",) if families == ("heads",) else PARTS
        return min(
            share * sum(self.full[i, part] for i in layers for part in some)
            - sum(self.sub_layers[i, part] for i in layers for part in some)
            for some in (parts, PARTS)
        )

    def fill(self, ordered: Iterable[_Group], budget: float) -> None:
        """Takes groups in order while they fit into the budget."""
        closed: set[Place] = set()
        slack = 1e-9 * self.cost.dense
        for group in ordered:
            if group.place in closed:
                continue
            if self.price(group) > budget + slack:
                closed.add(group.place)
            else:
                budget -= self.take(group)

    def structure(self) -> Structure:
        layers = []
        for i, have in enumerate(self.scores.counts):
            whole = Structure.full([have]).layers[0]
            kept = {p: tuple(sorted(units)) for p, units in self.units.items() if p[0] == i}
            heads, neurons = (
                kept.get((i, "heads", ""), whole.heads),
                kept.get((i, "neurons", ""), whole.neurons),
            )
            ranks = {role: kept.get((i, "ranks", role), all_) for role, all_ in whole.ranks.items()}
            layers.append(LayerStructure(heads, neurons, ranks))
        return Structure(tuple(layers))


def _groups(scores: UnitScores, limits: Limits) -> list[_Group]:
    groups = []
    for place, values in scores.places().items():
        if not torch.isfinite(values).all():
            raise UserError(f"a score of layer {place[0]}'s {place[1]} is not a finite number")
        values, order = torch.sort(values, descending=True, stable=True)
        start = 0
        for n, size in enumerate(limits.group_sizes(place[1], len(values))):
            part = slice(start, start + size)
            must = n == 0 and (not limits.allow_empty or place[1] == "ranks")
            groups.append(_Group(place, order[part].tolist(), values[part].mean().item(), must))
            start += size
    return groups


def _check_reachable(groups: list[_Group], scores: UnitScores, cost: Cost, keep_frac: float) -> None:
    floor = _State(scores, cost)
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
