"""Taylor: the heads and neurons stay whose removal would change the loss most, to first order.

The importance of a unit is |dL/dz| of a gate z = 1 on its output, row by row, mean over `score_rows` training rows
(`prune.importance`); the loss of a row of a language model is the sum over its tokens, so that here too the size of a
batch changes nothing. It comes from the labels, or from labels drawn from the model's own first predictions, which
needs none. Units go in `iterations` rounds, each with scores of what the former left; the first is at progress `begin`,
the last at `settled_at`, and between them the model recovers. What is gone stays gone. With settled_at 0 all rounds
come before training: for a model that is fine-tuned already (model=from_run), as a new classifier says nothing of a
unit.

The two families are sorted by themselves (scope=family, uneven over layers; scope=layer takes the same share of each
layer). In place of keep_frac exact counts can be asked for: heads=6 keeps 6 heads per layer in the mean, with
scope=layer or even=heads in every one. No count is ever exceeded.

keep_frac is the share of the dense encoder's cost (`cost`) that stays.

Sources: Michel et al. 2019; TextPruner (Yang et al. 2022) in its iterative mode. Departures from TextPruner: the
absolute value row by row, not batch by batch; no second term for neurons; a layer that may not be empty keeps its best
unit within the budget, not beyond it; its logits' loss compares a model with itself, whose gradient is 0 in the first
round, and is a softmax also where labels are independent: here labels are drawn, with the task's own link.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from keepfrac.errors import UserError
from keepfrac.models.cut import counts_of
from keepfrac.prune.budget import UnitScores
from keepfrac.prune.cost import fraction
from keepfrac.prune.importance import drawn_labels, gate_gradients, within
from keepfrac.prune.select import select, select_counts
from keepfrac.prune.settings import check_number
from keepfrac.prune.structure import Indices, LayerCounts, LayerStructure, Structure
from keepfrac.training.finetune import Batch
from keepfrac.training.structured_pruning import Budget, Pruner

SOURCES = ("labels", "logits")
DRAWN = ("classification", "multi_label", "regression")


class TaylorPrune(Pruner):
    """Keeps the heads and neurons on which the loss depends most.

    Args:
        importance_from: labels | logits: labels drawn from what the model predicts before the first round.
        iterations: rounds of scoring and removing, >= 1.
        begin: progress of the first round, in [0, settled_at]; without meaning for one round.
        heads: how many stay per layer, in the mean over layers, >= 1; null: as keep_frac says. With heads or neurons
            keep_frac must be 1: they take its place.
        neurons: the same of neurons.
        even: heads | neurons: the family of these exact counts that every layer keeps the same number of, whatever the
            scope; null: as scope says.
        score_rows: training rows that are scored, >= 1; null: all.
        score_split: train: validation and test are refused.
        score_seed: of the choice of these rows, and of drawn labels.
        name: see Pruner, as for those that are not named here.
    """

    def __init__(
        self,
        *,
        net,
        task,
        loop,
        name,
        keep_frac,
        cost,
        length,
        latency,
        scope,
        align,
        floor,
        allow_empty,
        drop_empty,
        settled_at,
        importance_from,
        iterations,
        begin,
        heads,
        neurons,
        even,
        score_rows,
        score_split,
        score_seed,
    ):
        budget = Budget(cost, length, latency, scope, align, floor, allow_empty, drop_empty)
        super().__init__(net, task, loop, name, keep_frac, budget, settled_at)
        self.importance_from, self.iterations, self.begin = importance_from, iterations, begin
        self.wanted, self.even = {"heads": heads, "neurons": neurons}, even
        self.score_rows, self.score_split, self.score_seed = score_rows, score_split, score_seed
        self.rounds = 0
        self.drawn: Tensor | None = None
        if importance_from == "logits" and task.problem not in DRAWN:
            raise UserError(
                f"method.importance_from=logits for a task of {task.problem}: it knows {', '.join(DRAWN)}; use labels"
            )

    @staticmethod
    def check(settings: dict) -> None:
        """Refuses a bad setting before a sweep starts."""
        Pruner.check(settings)
        check_number(settings, "begin", 0, 1)
        if settings["importance_from"] not in SOURCES:
            raise UserError(
                f"method.importance_from={settings['importance_from']}: must be one of {', '.join(SOURCES)}"
            )
        if settings["score_split"] != "train":
            raise UserError(
                f"method.score_split={settings['score_split']}: must be train; what chooses a model's units must not be"
                " what it is judged by"
            )
        for key in ("iterations", "heads", "neurons", "score_rows"):
            value = settings[key]
            missing = value is None and key != "iterations"
            if not missing and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise UserError(
                    f"method.{key}={value}: must be a whole number >= 1" + ", or null" * (key != "iterations")
                )
        if settings["iterations"] > 1 and not 0 <= settings["begin"] <= settings["settled_at"]:
            raise UserError(
                f"method.begin={settings['begin']}: must be in [0, method.settled_at={settings['settled_at']}]"
            )
        even = settings["even"]
        if even is not None and (even not in ("heads", "neurons") or settings[even] is None):
            raise UserError(f"method.even={even}: must be heads or neurons, whichever of the two has a count, or null")
        if (settings["heads"] or settings["neurons"]) and settings["keep_frac"] != 1:
            raise UserError(
                f"keep_frac={settings['keep_frac']}: must be 1 with method.heads or method.neurons in its place"
            )

    # hooks -----------------------------------------------------------------------------------------------------------

    def prepare(self, batches: Iterable[Batch]) -> None:
        if self.cost is None:
            if any(self.wanted.values()):
                self.keep_frac = self._implied()
            if self._trainer is not None:
                self.net.to(self._trainer.strategy.root_device)  # where Lightning will bring it after this
        super().prepare(batches)

    def after_step(self) -> None:
        done = (self.global_step + 1) / max(1, self.loop.total_steps)  # Lightning counts the step after this hook
        while self.keep_frac < 1 and self.rounds < self.iterations and done >= self._due(self.rounds + 1):
            self._round()

    def finish(self, batches: Iterable[Batch]) -> None:
        self.prepare(batches)  # a run without training has not been prepared
        if self.keep_frac < 1 and self.layers:
            self._settle()
        super().finish(batches)

    def get_extra_state(self) -> dict:
        return {**super().get_extra_state(), "rounds": self.rounds, "drawn": self.drawn}

    def set_extra_state(self, state: dict) -> None:
        super().set_extra_state(state)
        self.rounds, self.drawn = state["rounds"], state["drawn"]

    # rounds ----------------------------------------------------------------------------------------------------------

    def choose(self) -> Structure:
        """Returns what a round by equal scores would keep: asked for before training, for its errors."""
        heads, neurons = ([torch.ones(int(getattr(c, f))) for c in self.counts] for f in ("heads", "neurons"))
        return self._select(UnitScores(self.counts, heads, neurons), 1.0)

    def scores(self) -> UnitScores:
        """Returns the importance of the units that are left."""
        training = self.net.training
        self.net.eval()
        try:
            found = gate_gradients(self.net, self.layers, self._batches(), self._loss)
        finally:
            self.net.train(training)
        left = self._left()
        heads = [s[list(kept.heads)] for s, kept in zip(found.heads or (), left.layers, strict=True)]
        neurons = [s[list(kept.neurons)] for s, kept in zip(found.neurons or (), left.layers, strict=True)]
        if self._trainer is not None:  # sums may differ in their last bit from one process to another
            heads, neurons = self._trainer.strategy.broadcast((heads, neurons))
        return UnitScores(left.counts(), heads, neurons)

    def _settle(self) -> None:
        while self.rounds < self.iterations:
            self._round()

    def _round(self) -> None:
        """Scores what is left, removes this round's share, and masks it."""
        assert self.cost is not None
        self.rounds += 1
        done, last = self.rounds / self.iterations, self.rounds == self.iterations
        chosen = self._left()
        ahead = float(fraction(self.cost, chosen.counts())) <= self._target(done)  # heads are coarse: a round may skip
        if any(self.wanted.values()) or not ahead:
            chosen = within(chosen, self._select(self.scores(), done))
        self.structure = chosen.without_empty_layers() if last and self.budget.drop_empty else chosen
        self.unmask()
        self.mask(self.structure)

    def _due(self, number: int) -> float:
        """The progress at which round `number`, from 1, is held."""
        share = (number - 1) / (self.iterations - 1) if self.iterations > 1 else 1.0
        return self.begin + (self.settled_at - self.begin) * share

    def _left(self) -> Structure:
        return self.structure or Structure.full(self.counts)

    def _target(self, done: float) -> float:
        """The share of the dense cost that is left when a share `done` of all that has to go is gone."""
        assert self.cost is not None
        start = float(fraction(self.cost, self.counts))
        return start + (self.keep_frac - start) * done

    def _select(self, scores: UnitScores, done: float) -> Structure:
        """What stays of the scored units when a share `done` of all that has to go is gone."""
        assert self.cost is not None
        if not any(self.wanted.values()):
            return select(scores, self.cost, self._target(done), self.budget.limits, self.budget.scope)
        heads, neurons = (self._counted(f, getattr(scores, f), done) for f in ("heads", "neurons"))
        ranks = [{role: tuple(range(int(r))) for role, r in c.ranks.items()} for c in scores.counts]
        return Structure(tuple(map(LayerStructure, heads, neurons, ranks)))

    def _counted(self, family: str, scores: Sequence[Tensor], done: float) -> list[Indices]:
        """The units of one family that stay, exactly as many as asked for when all is done."""
        wanted = self.wanted[family]
        if wanted is None:
            return [tuple(range(len(values))) for values in scores]
        align, even = self.budget.align.get(family, 1), self.budget.scope == "layer" or self.even == family
        start, end = sum(int(getattr(c, family)) for c in self.counts), wanted * len(scores)
        step = align * len(scores) if even else align
        count = end + int((start - end) * (1 - done) + 1e-6) // step * step
        floor = 0 if self.budget.allow_empty else self.budget.floor.get(family, 1)
        return select_counts(scores, count, floor, align, even)

    def _implied(self) -> float:
        """The share of the dense cost that the counts are."""
        had = counts_of(self.net)
        for family, wanted in self.wanted.items():
            most = sum(int(getattr(c, family)) for c in had)
            if wanted is not None and wanted * len(had) > most:
                raise UserError(f"method.{family}={wanted} in {len(had)} layers: the model has {most} in all")
        counts = [
            LayerCounts(self.wanted["heads"] or c.heads, self.wanted["neurons"] or c.neurons, c.ranks) for c in had
        ]
        return float(fraction(self._cost(), counts))

    # what is scored --------------------------------------------------------------------------------------------------

    def _loss(self, batch: Batch) -> Tensor:
        """The sum of the rows' losses, each of which is its own row's alone."""
        return self.task.row_losses(self.net(**self.task.inputs(batch)), batch).sum()

    def _batches(self) -> Iterator[Batch]:
        """Yields the scored training rows, the same in every round and every process."""
        if self.importance_from == "logits" and self.drawn is None:
            self.drawn = self._draw()
        for rows, batch in self._rows():
            yield (batch if self.drawn is None else {**batch, "labels": self.drawn[rows].to(batch["labels"].device)})

    def _rows(self) -> Iterator[tuple[np.ndarray, Batch]]:
        """Yields (places among the scored rows, batch); rows of similar length stand together."""
        data = self.task.encoded(self.score_split)
        order = np.random.default_rng(self.score_seed).permutation(len(data))[: self.score_rows]
        places = np.argsort(np.asarray(data.lengths)[order], kind="stable")
        device = next(self.net.parameters()).device
        cuts = [*range(0, len(places), self.task.batch_size), len(places)]
        for start, end in pairwise(cuts):
            rows = places[start:end]
            batch = self.task.collate([data[int(i)] for i in order[rows]])
            yield rows, self.task.to_device(batch, device)

    @torch.no_grad()
    def _draw(self) -> Tensor:
        """Labels of the scored rows from the model's own predictions."""
        found: dict[int, Tensor] = {}
        generator = np.random.default_rng([self.score_seed, 1])
        total = min(len(self.task.encoded(self.score_split)), self.score_rows or np.iinfo(np.int64).max)
        uniform = torch.from_numpy(generator.random((total, self.task.num_labels)))
        for rows, batch in self._rows():
            logits = self.net(**self.task.inputs(batch)).logits.cpu()
            labels = drawn_labels(logits, uniform[rows], self.task.problem)
            found |= dict(zip(rows.tolist(), labels, strict=True))
        return torch.stack([found[row] for row in range(total)])
