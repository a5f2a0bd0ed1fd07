"""Structured LoRA-sparse tuning (DSEE): updates of a frozen encoder from which heads and neurons are cut.

Until `settled_at` the updates are tuned, and with score=l1 a coefficient c (1 at first) for every head and every
feed-forward neuron with them, under a loss of l1 sum |c|. Then the units of the highest scores stay, in exact numbers:

    l1        |c|; what stays keeps its coefficient, which is folded into the weights in the end
    delta     of a head the sum of |alpha / r (U V + S2)| over its slices of updated linears, of a neuron over its row
              and its column
    w_delta   the same of |W + alpha / r (U V + S2)|, over all linears

The rest of the fit tunes the updates, and the learning rate restarts. In the end heads and neurons are sliced out of W,
U, V and S2, and the updates are merged. With score=w_delta and settled_at=0 the cut comes first, and training is as
fast as the small model is.

keep_frac is the share of the heads and, unless neurons_keep_frac says another, of the neurons that stays. 3 of 12 heads
and a quarter of the neurons are 25.0 % of BERT-base's MACs at 128 tokens; with 40 % of the neurons 34.7 %.

Source: Chen et al. 2023 (DSEE), whose code has the head scores by delta; Chen et al. 2021 (EarlyBERT) for l1.
Departures: numbers are exact; coefficients are folded; U, V and S2 are cut too.
"""

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from keepfrac.adapters.surgery import adapted, detach, reattach
from keepfrac.adapters.units import cut_updates, has_update, unit_scores
from keepfrac.errors import UserError
from keepfrac.models.cut import counts_of, largest_difference, shape_of
from keepfrac.prune.attach import FixedGates, attach
from keepfrac.prune.coefficients import Coefficients
from keepfrac.prune.cost import fraction
from keepfrac.prune.masks import num_kept
from keepfrac.prune.select import select_counts
from keepfrac.prune.structure import Indices, LayerCounts, LayerStructure, Structure
from keepfrac.settings import choice, in_range, mapping, number, settings, share
from keepfrac.training.adapter_tuning import Adapters, SparseAdapterSettings, trained, warm_restart
from keepfrac.training.finetune import Batch
from keepfrac.training.structured_pruning import BATCHES, TOLERANCE, Pruner


class DseeStructured(Pruner):
    """Updates of a frozen encoder, and exact numbers of its heads and neurons."""

    @settings
    class Settings(SparseAdapterSettings, Pruner.Settings):
        neurons_keep_frac: float | None = share(
            "share of the feed-forward neurons that stays; null: keep_frac", "(]", null=True
        )
        merge: str = choice("what is delivered, see `training.adapter_tuning`", "masked", "dense", "keep")
        score: str = choice(
            "of a unit: its coefficient, its update, or the sum of weight and update", "l1", "delta", "w_delta"
        )
        scope: str = choice("layer: the same numbers in every layer", "layer", "global")
        l1: Mapping[str, float] = mapping("weights of the losses of score=l1", in_range(0), "heads", "neurons")
        coefficient_lr: float = number("learning rate of the coefficients of score=l1", ends="(]")
        settled_at: float = share("progress at which the units are chosen and the learning rate restarts", "[)")

        def check(self) -> None:
            super().check()
            if self.score == "l1" and self.settled_at == 0:
                raise self.error("settled_at", "must be above 0 with score=l1: coefficients are trained until then")
            if self.neurons_keep_frac is not None and self.keep_frac == 1:
                raise self.error("neurons_keep_frac", "must be null beside keep_frac=1")

    settings: Settings

    merges = False  # updates of two factors stay with them

    def __init__(self, net, task, loop, settings: Settings):
        super().__init__(net, task, loop, settings)
        self.settled_at = settings.settled_at if self.keep_frac < 1 else 0.0
        self.adapters = Adapters(settings)
        self.shares = {"heads": self.keep_frac, "neurons": settings.neurons_keep_frac or self.keep_frac}
        self.coefficients: Coefficients | None = None
        self.account: dict[str, float] = {}

    # hooks -----------------------------------------------------------------------------------------------------------

    def prepare(self, batches: Iterable[Batch]) -> None:
        if self.cost is None:
            self.adapters.attach(self, batches)
            if self.settings.score == "l1" and self.keep_frac < 1:
                self.coefficients = Coefficients(counts_of(self.net)).to(next(self.net.parameters()).device)
            super().prepare(batches)
            self.adapters.freeze(self)  # a model that was just cut is a new one
            self.account = trained(self)
            if self.coefficients is not None:
                self.handles = attach(self.net, self.layers, self.coefficients)

    def param_groups(self) -> list[dict]:
        groups = [{**group, "schedule": self._rate} for group in super().param_groups()]
        if self.coefficients is None:
            return groups
        own = {"lr": self.settings.coefficient_lr, "weight_decay": 0.0, "clip": None, "schedule": self._own_rate}
        return [*groups, {"params": list(self.coefficients.parameters()), **own}]

    def losses(self, batch: Batch, outputs) -> dict[str, Tensor]:
        if self.coefficients is None:
            return {}
        # 0 from settled_at on, with a gradient of 0: several processes wait for one of every parameter
        still = float(self.structure is None)
        weights = self.settings.l1
        return {f"l1_{family}": still * weight * self.coefficients.l1(family) for family, weight in weights.items()}

    def finish(self, batches: Iterable[Batch]) -> None:
        self.prepare(batches)
        self.account |= trained(self)
        super().finish(batches)
        self.account |= self.adapters.merge_for_export(self)

    def kept(self) -> dict:
        found = {**super().kept(), **self.account, "merge": self.settings.merge}
        if self.cost is None or self.settings.neurons_keep_frac is None:
            return found
        shape = shape_of(self.net)
        numbers = {f: num_kept(s, getattr(shape, f"num_{f}")) for f, s in self.shares.items()}
        asked = fraction(self.cost, [LayerCounts(numbers["heads"], numbers["neurons"])] * shape.num_layers)
        return {**found, "asked": float(asked)}

    # the choice ------------------------------------------------------------------------------------------------------

    def choose(self) -> Structure:
        heads, neurons = self._unit_scores()
        whole = Structure.full(self.counts).layers
        pairs = zip(self._best("heads", heads), self._best("neurons", neurons), whole, strict=True)
        return Structure(tuple(LayerStructure(h, n, layer.ranks) for h, n, layer in pairs))

    def values(self) -> FixedGates | None:
        return None if self.coefficients is None else self.coefficients.fixed()

    def mask(self, structure: Structure) -> None:
        if self.coefficients is None:
            super().mask(structure)
            return
        self.coefficients.freeze(structure)
        if not self.handles:
            self.handles = attach(self.net, self.layers, self.coefficients)

    def _unit_scores(self) -> tuple[list[Tensor], list[Tensor]]:
        if self.coefficients is not None:
            return self.coefficients.sizes("heads"), self.coefficients.sizes("neurons")
        scores = unit_scores(self.net, self.layers, with_weight=self.settings.score == "w_delta")
        if self.settings.score == "delta":
            self._check_delta(dict(zip(("heads", "neurons"), scores, strict=True)))
        return scores

    def _check_delta(self, scores: dict[str, list[Tensor]]) -> None:
        for family, by_layer in scores.items():
            if self.shares[family] == 1:
                continue
            if not has_update(adapted(self.net), self.layers, family):
                raise UserError(
                    f"method.score=delta: no update changes the {family}; name their linears in method.targets"
                    f" (now {', '.join(self.settings.targets)}), keep them all, or use score=w_delta"
                )
            if self.settled_at == 0 and not any(one.any() for one in by_layer):
                raise UserError("method.score=delta with settled_at=0: all updates are zero before training")

    def _best(self, family: str, scores: list[Tensor]) -> list[Indices]:
        """The units that stay, of each layer; the share is one of the dense original."""
        shape, share = shape_of(self.net), self.shares[family]
        dense = getattr(shape, f"num_{family}")
        if self.settings.scope == "layer":
            count = max(1, num_kept(share, dense))
            return [
                select_counts([one], min(count, len(one)), floor=min(1, len(one)), align=1, even=False)[0]
                for one in scores
            ]
        count = max(len(scores), num_kept(share, dense * shape.num_layers))
        return select_counts(scores, count, floor=1, align=1, even=False)

    # -----------------------------------------------------------------------------------------------------------------

    def _rate(self, progress: float) -> float:
        return warm_restart(progress, self.settled_at, self.loop.warmup)

    def _own_rate(self, progress: float) -> float:
        return self._rate(progress) if progress < self.settled_at else 0.0

    def cut_units(self, batches: Iterable[Batch]) -> None:
        """Cuts W as every pruner does, then U, V and S2, and holds the whole against the masked whole."""
        assert self.structure is not None
        some, layers, training = list(itertools.islice(batches, BATCHES)), self.layers, self.net.training
        self.net.eval()
        masked = [(batch, self._logits(batch)) for batch in some]
        gates, structure = self.values(), self.structure
        self.unmask()  # its hooks sit on modules that are taken off now
        updates = detach(self.net)
        self.mask(structure)
        super().cut_units(some)
        reattach(self.net, cut_updates(updates, layers, self.counts, structure, gates), self.settings.dropout)
        self.net.eval()
        largest_difference(_second, self._logits_again, masked, TOLERANCE)
        self.net.train(training)

    def _logits_again(self, pair: Any) -> Tensor:
        return self._logits(pair[0])

    def _logits(self, batch: Batch) -> Tensor:
        return self.net(**self._inputs(batch))[0].detach()


def _second(pair: Any) -> Tensor:
    return pair[1]
