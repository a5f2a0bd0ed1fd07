"""Trainable hard-concrete gates for the units of a transformer encoder (CoFi's families, each optional)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from keepfrac.errors import UserError
from keepfrac.prune.attach import FixedGates, attach, gates_of
from keepfrac.prune.budget import UnitScores
from keepfrac.prune.hard_concrete import deterministic, log_alpha_of, open_probability, sample
from keepfrac.prune.structure import LayerCounts, LayerParts, Number, Structure

FAMILIES = ("heads", "neurons", "attention", "ffn", "layers", "ranks")
# Units are kept by P(z > 0), which is above 0 also where the deterministic gate is 0. A kept unit that stood at 0 would
# get no gradient any more and cost its share for nothing; at 0.1 the weights can still make of it what they need.
KEPT_AT_LEAST = 0.1


class Gates(nn.Module):
    """One log alpha per unit, in fp32 always; samples while training, the deterministic gate in eval mode.

    Noise is a function of (seed, step): it is the same on every rank and in every micro-batch of a step, and a
    resumed run draws what the uninterrupted one would have drawn. Call `draw()` after each optimizer step.

    Args:
        counts: what the model has now (`attach.read_counts`).
        families: which of heads, neurons, attention, ffn (sub-layers), layers, ranks have gates.
        open_probability: P(z > 0) of every gate at the start, in (0, 1).
        beta: temperature of the hard concrete, > 0.
        limit: log alpha is clamped into [-limit, limit] by `clamp_`, > 0.
        seed: of the noise.
    """

    def __init__(
        self,
        counts: Sequence[LayerCounts],
        families: Sequence[str],
        open_probability: float,
        beta: float,
        limit: float,
        seed: int,
    ) -> None:
        super().__init__()
        unknown = set(families) - set(FAMILIES)
        if unknown or not families:
            raise UserError(f"gates on {sorted(unknown) or 'nothing'}: name at least one of {', '.join(FAMILIES)}")
        if "ranks" in families and not any(c.ranks for c in counts):
            raise UserError("gates on ranks, but the model has no low-rank linear: factorise it first")
        if beta <= 0 or limit <= 0:
            raise UserError(f"the gates' beta is {beta} and their limit {limit}: both must be above 0")
        self.counts, self.families = list(counts), tuple(families)
        self.beta, self.limit, self.seed = beta, limit, seed
        start = min(limit, max(-limit, log_alpha_of(open_probability, beta)))
        self.log_alpha = nn.ParameterDict(
            {key: nn.Parameter(torch.full((size,), start)) for key, size in self._sizes().items() if size}
        )
        self.step = 0
        self.structure: Structure | None = None
        self._noise: tuple[int, dict[str, Tensor]] = (-1, {})
        self._fixed: FixedGates | None = None
        self._handles: list[RemovableHandle] = []

    def _sizes(self) -> dict[str, int]:
        sizes: dict[str, int] = {}
        for i, c in enumerate(self.counts):
            sizes |= {f"{f}/{i}": int(getattr(c, f)) for f in ("heads", "neurons") if f in self.families}
            if "ranks" in self.families:
                sizes |= {f"ranks/{i}/{role}": int(rank) for role, rank in c.ranks.items()}
        return sizes | {f: len(self.counts) for f in ("attention", "ffn", "layers") if f in self.families}

    def attach(self, net: nn.Module, layers: Sequence[LayerParts]) -> None:
        """Puts the gates onto the model by hooks; see `prune.attach`."""
        self.detach()
        self._handles = attach(net, layers, self)

    def detach(self) -> None:
        """Takes the hooks off again: the model is as it was."""
        while self._handles:
            self._handles.pop().remove()

    def draw(self) -> None:
        """Draws new noise for the next forward pass."""
        self.step += 1

    @torch.no_grad()
    def clamp_(self) -> None:
        """Keeps log alpha in reach of the gradient: |a| <= limit."""
        for a in self.log_alpha.values():
            a.clamp_(-self.limit, self.limit)

    def freeze(self, structure: Structure) -> None:
        """Fixes the gates: 0 for units outside the structure, the others as in evaluation, without gradient.

        What is kept stands at KEPT_AT_LEAST at least: units, ranks, and the gates of their sub-layers and layers. A
        sub-layer without units is closed with its bias, so that it equals its removal.
        """
        structure.check(self.counts)
        self.structure, self._fixed = structure, None

    def expected(self) -> list[LayerCounts]:
        """Returns the expected counts of each layer, differentiable; gates are independent, so nested ones multiply."""
        found = []
        for i, c in enumerate(self.counts):
            nest = {"heads": self._nested(i, "attention"), "neurons": self._nested(i, "ffn")}
            units = {f: self._expected(f"{f}/{i}", getattr(c, f)) * nest[f] for f in nest}
            ranks = {role: self._expected(f"ranks/{i}/{role}", rank) for role, rank in c.ranks.items()}
            found.append(LayerCounts(units["heads"], units["neurons"], ranks))
        return found

    def scores(self) -> UnitScores:
        """Returns each unit's probability to be open, with its sub-layer and layer: comparable across families."""
        with torch.no_grad():
            by_family = {f: self._unit_scores(f, part) for f, part in (("heads", "attention"), ("neurons", "ffn"))}
            ranks = None
            if "ranks" in self.families:
                ranks = [
                    {role: self._probability(f"ranks/{i}/{role}") for role in c.ranks}
                    for i, c in enumerate(self.counts)
                ]
        whole = frozenset({"heads", "neurons"} - set(self.families))
        together = set(self.families) & {"heads", "neurons", "attention", "ffn", "layers"} == {"layers"}
        return UnitScores(self.counts, **by_family, ranks=ranks, whole=whole, together=together)

    def fixed(self) -> FixedGates:
        """Returns the gates as evaluation has them, as values without gradient: what cutting folds into the weights."""
        structure = self.structure or Structure.full(self.counts)
        masks = gates_of(structure, self.counts, self._device())
        with torch.no_grad():
            return replace(
                masks,
                heads=[self._times(z, f"heads/{i}") for i, z in enumerate(masks.heads or ())],
                neurons=[self._times(z, f"neurons/{i}") for i, z in enumerate(masks.neurons or ())],
                attention=self._times(self._times(masks.attention, "attention"), "layers"),
                ffn=self._times(self._times(masks.ffn, "ffn"), "layers"),
                ranks=[
                    {role: self._times(z, f"ranks/{i}/{role}") for role, z in by_role.items()}
                    for i, by_role in enumerate(masks.ranks or ())
                ],
            )

    def units(self, layer: int, family: str) -> Tensor | None:
        return self._frozen().units(layer, family) if self.structure else self._value(f"{family}/{layer}")

    def rank(self, layer: int, role: str) -> Tensor | None:
        return self._frozen().rank(layer, role) if self.structure else self._value(f"ranks/{layer}/{role}")

    def sub_layer(self, layer: int, part: str) -> Tensor | None:
        if self.structure:
            return self._frozen().sub_layer(layer, part)
        found = [z[layer] for z in (self._value(part), self._value("layers")) if z is not None]
        return torch.stack(found).prod() if found else None

    def dropped(self, layer: int) -> bool:
        return self.structure is not None and self.structure.layers[layer].dropped

    def get_extra_state(self) -> dict:
        return {"step": self.step, "structure": self.structure.to_json() if self.structure else None}

    def set_extra_state(self, state: dict) -> None:
        self.step = state["step"]
        self.structure = Structure.from_json(state["structure"]) if state["structure"] else None
        self._fixed, self._noise = None, (-1, {})

    def _apply(self, fn, recurse: bool = True):
        def in_fp32(t: Tensor) -> Tensor:
            moved = fn(t)
            return moved if moved.dtype == t.dtype else t.to(moved.device)

        self._fixed, self._noise = None, (-1, {})
        return super()._apply(in_fp32, recurse)

    def _value(self, key: str) -> Tensor | None:
        """The gates of this forward: this step's sample while training, deterministic in eval mode."""
        if key not in self.log_alpha:
            return None
        a = self.log_alpha[key]
        return sample(a, self._uniform(key), self.beta) if self.training else deterministic(a)

    def _uniform(self, key: str) -> Tensor:
        if self._noise[0] != self.step:
            generator = torch.Generator().manual_seed(1_000_003 * self.seed + self.step)
            drawn = {k: torch.rand(a.shape, generator=generator).to(a.device) for k, a in self.log_alpha.items()}
            self._noise = (self.step, drawn)
        return self._noise[1][key]

    def _probability(self, key: str) -> Tensor:
        return open_probability(self.log_alpha[key], self.beta)

    def _nested(self, layer: int, part: str) -> Tensor | float:
        result: Tensor | float = 1.0
        for key in (part, "layers"):
            if key in self.log_alpha:
                result = result * self._probability(key)[layer]
        return result

    def _expected(self, key: str, have: Number) -> Number:
        return self._probability(key).sum() if key in self.log_alpha else have

    def _unit_scores(self, family: str, part: str) -> list[Tensor] | None:
        """Where only the sub-layer has gates, its units share its score: they stay or go together."""
        if not {family, part, "layers"} & set(self.families):
            return None
        found = []
        for i, c in enumerate(self.counts):
            key, size = f"{family}/{i}", int(getattr(c, family))
            own = self._probability(key) if key in self.log_alpha else torch.ones(size)
            found.append(own.double().cpu() * float(self._nested(i, part)))
        return found

    def _times(self, mask: Tensor | None, key: str) -> Tensor:
        assert mask is not None
        if key not in self.log_alpha:
            return mask
        least = KEPT_AT_LEAST if self.structure else 0.0  # gates that are still trained may be 0
        return mask * deterministic(self.log_alpha[key]).clamp(min=least)

    def _frozen(self) -> FixedGates:
        if self._fixed is None:
            self._fixed = self.fixed()
        return self._fixed

    def _device(self) -> torch.device:
        return next(self.log_alpha.parameters()).device
