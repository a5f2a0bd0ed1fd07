"""Units, their scores, and the cost of a selection while it is made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from keepfrac.errors import UserError
from keepfrac.prune.cost import Cost
from keepfrac.prune.structure import LayerCounts, LayerStructure, Structure

FAMILIES = ("heads", "neurons", "ranks")
PARTS = ("attention", "ffn")
Component = tuple[int, str, str]
"""(layer, family, role): the role is empty for heads and neurons."""


@dataclass(frozen=True)
class UnitScores:
    """How much each unit matters, higher is better; None for a family that is not pruned.

    Args:
        counts: what the model has.
        heads: per layer (heads,).
        neurons: per layer (neurons,).
        ranks: per layer, role -> (rank,).
        whole: families whose units stay or go together in each layer, because only their sub-layers were scored.
        together: whether both sub-layers of a layer stay or go together, because only layers were scored.
    """

    counts: Sequence[LayerCounts]
    heads: Sequence[Tensor] | None = None
    neurons: Sequence[Tensor] | None = None
    ranks: Sequence[Mapping[str, Tensor]] | None = None
    whole: frozenset[str] = frozenset()
    together: bool = False

    def components(self) -> dict[Component, Tensor]:
        """Returns every scored vector by its component, families in order, on the CPU in float64."""
        found: dict[Component, Tensor] = {}
        for family, scored in (("heads", self.heads), ("neurons", self.neurons)):
            found |= {(i, family, ""): s for i, s in enumerate(scored or ())}
        found |= {(i, "ranks", role): s for i, by_role in enumerate(self.ranks or ()) for role, s in by_role.items()}
        if not found:
            raise UserError("no family of units is scored: there is nothing to prune")
        return {component: s.detach().double().cpu() for component, s in found.items()}


@dataclass
class Group:
    """Units of one component that are taken together; `must`: whatever the budget says."""

    component: Component
    units: list[int]
    score: float
    must: bool


class Spending:
    """The counts and units taken so far, with the cost kept up to date sub-layer by sub-layer."""

    def __init__(self, scores: UnitScores, cost: Cost) -> None:
        self.cost, self.scores = cost, scores
        self.units: dict[Component, list[int]] = {component: [] for component in scores.components()}
        self.sub_layers = {
            (i, part): self._sub_cost(i, part, None) for i in range(len(scores.counts)) for part in PARTS
        }
        self.spent = sum(self.sub_layers.values())
        self.full = {(i, "attention"): float(cost.attention(c.heads, c.ranks)) for i, c in enumerate(scores.counts)}
        self.full |= {(i, "ffn"): float(cost.ffn(c.neurons, c.ranks)) for i, c in enumerate(scores.counts)}

    def _count(self, layer: int, family: str, role: str, extra: Group | None) -> int:
        component = (layer, family, role)
        if component not in self.units:
            have = self.scores.counts[layer]
            return int(have.ranks[role] if family == "ranks" else getattr(have, family))
        return len(self.units[component]) + (len(extra.units) if extra and extra.component == component else 0)

    def _sub_cost(self, layer: int, part: str, extra: Group | None) -> float:
        ranks = {role: self._count(layer, "ranks", role, extra) for role in self.scores.counts[layer].ranks}
        if part == "attention":
            return float(self.cost.attention(self._count(layer, "heads", "", extra), ranks))
        return float(self.cost.ffn(self._count(layer, "neurons", "", extra), ranks))

    @staticmethod
    def part_of(component: Component) -> str:
        return "ffn" if component[1] == "neurons" or component[2].startswith("ffn") else "attention"

    def price(self, group: Group) -> float:
        key = (group.component[0], self.part_of(group.component))
        return self._sub_cost(*key, group) - self.sub_layers[key]

    def take(self, group: Group) -> float:
        price = self.price(group)
        self.units[group.component] += group.units
        self.sub_layers[group.component[0], self.part_of(group.component)] += price
        self.spent += price
        return price

    def budget(self, layers: Sequence[int], families: Sequence[str], keep_frac: float) -> float:
        """Returns the cost left to a pool: its layers' share of the whole budget; heads alone: attention's share."""
        share = keep_frac * self.cost.dense / sum(self.full.values())
        parts = ("attention",) if families == ("heads",) else PARTS
        return min(
            share * sum(self.full[i, part] for i in layers for part in some)
            - sum(self.sub_layers[i, part] for i in layers for part in some)
            for some in (parts, PARTS)
        )

    def fill(self, ordered: Iterable[Group], budget: float) -> None:
        """Takes groups in order while they fit into the budget."""
        closed: set[Component] = set()
        slack = 1e-9 * self.cost.dense
        for group in ordered:
            if group.component in closed:
                continue
            if self.price(group) > budget + slack:
                closed.add(group.component)
            else:
                budget -= self.take(group)

    def drop_halves(self) -> None:
        """Gives back the sub-layer of a layer whose other one did not fit."""
        for i in range(len(self.scores.counts)):
            halves = [self.units[i, family, ""] for family in ("heads", "neurons")]
            if not all(halves):
                for units in halves:
                    units.clear()

    def structure(self) -> Structure:
        layers = []
        for i, have in enumerate(self.scores.counts):
            whole = Structure.full([have]).layers[0]
            kept = {p: tuple(sorted(units)) for p, units in self.units.items() if p[0] == i}
            heads = kept.get((i, "heads", ""), whole.heads)
            neurons = kept.get((i, "neurons", ""), whole.neurons)
            ranks = {role: kept.get((i, "ranks", role), all_) for role, all_ in whole.ranks.items()}
            layers.append(LayerStructure(heads, neurons, ranks))
        return Structure(tuple(layers))
