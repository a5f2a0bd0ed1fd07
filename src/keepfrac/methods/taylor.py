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
from keepfrac.models.cut import counts_of, shape_of
from keepfrac.prune.budget import UnitScores
from keepfrac.prune.cost import fraction
from keepfrac.prune.importance import drawn_labels, gate_gradients, within
from keepfrac.prune.select import select, select_counts
from keepfrac.prune.structure import Indices, LayerCounts, LayerStructure, Structure
from keepfrac.settings import Kind, choice, count, setting, settings, share
from keepfrac.training.finetune import Batch
from keepfrac.training.structured_pruning import UnitPruner

DRAWN = ("classification", "multi_label", "regression")


class TaylorPrune(UnitPruner):
    """Keeps the heads and neurons on which the loss depends most."""

    @settings
    class Settings(UnitPruner.Settings):
        importance_from: str = choice(
            "whose loss: of the labels, or of labels drawn from what the model predicts before the first round",
            *("labels", "logits"),
        )
        iterations: int = count("rounds of scoring and removing")
        begin: float = share("progress of the first of several rounds")
        heads: int | None = count("heads per layer that stay, in the mean, in place of keep_frac", null=True)
        neurons: int | None = count("neurons per layer that stay, in the mean, in place of keep_frac", null=True)
        even: str | None = choice(
            "the family of these counts that every layer keeps the same number of, whatever the scope; null: as scope",
            *("heads", "neurons"),
            null=True,
        )
        score_rows: int | None = count("training rows that are scored; null: all", null=True)
        score_split: str = setting(
            "split whose rows are scored",
            Kind(
                lambda value: value == "train",
                "train; what chooses a model's units must not be what it is evaluated on",
            ),
        )
        score_seed: int = count("seed of the choice of these rows, and of drawn labels", least=0)

        def check(self) -> None:
            super().check()
            if self.iterations > 1 and self.begin > self.settled_at:
                raise self.error("begin", f"must be in [0, method.settled_at={self.settled_at}]")
            if self.even is not None and self.wanted[self.even] is None:
                raise self.error("even", "must be heads or neurons, whichever of the two has a count, or null")
            if any(self.wanted.values()) and self.keep_frac != 1:
                raise self.error("keep_frac", "must be 1 with method.heads or method.neurons in its place")

        @property
        def wanted(self) -> dict[str, int | None]:
            """Exact counts per layer, by family."""
            return {"heads": self.heads, "neurons": self.neurons}

    settings: Settings

    def __init__(self, net, task, loop, settings: Settings):
        super().__init__(net, task, loop, settings)
        self.wanted = settings.wanted
        self.rounds = 0
        self.drawn: Tensor | None = None
        if settings.importance_from == "logits" and task.problem not in DRAWN:
            raise UserError(
                f"method.importance_from=logits for a task of {task.problem}: it knows {', '.join(DRAWN)}; use labels"
            )

    # hooks -----------------------------------------------------------------------------------------------------------

    def prepare(self, batches: Iterable[Batch]) -> None:
        if self.cost is None:
            if any(self.wanted.values()):
                self.keep_frac = self._implied()
            if self._trainer is not None:
                self.net.to(self._trainer.strategy.root_device)  # where Lightning will move it after this
        super().prepare(batches)

    def after_step(self) -> None:
        while self.keep_frac < 1 and self._rounds_left() and self.progress_with_step >= self._due(self.rounds + 1):
            self._round()

    def finish(self, batches: Iterable[Batch]) -> None:
        self.prepare(batches)  # a run without training has not been prepared
        if self.keep_frac < 1 and self.layers:
            self.fix_structure()
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

    def fix_structure(self) -> None:
        while self._rounds_left():
            self._round()

    def _rounds_left(self) -> bool:
        return self.rounds < self.settings.iterations

    def _round(self) -> None:
        """Scores the remaining units, removes this round's share, and masks it."""
        assert self.cost is not None
        self.rounds += 1
        done, last = self.rounds / self.settings.iterations, self.rounds == self.settings.iterations
        chosen = self._left()
        ahead = float(fraction(self.cost, chosen.counts())) <= self._target(done)  # heads are coarse: a round may skip
        if any(self.wanted.values()) or not ahead:
            chosen = within(chosen, self._select(self.scores(), done))
        self.structure = chosen.without_empty_layers() if last and self.settings.drop_empty else chosen
        self.unmask()
        self.mask(self.structure)

    def _due(self, number: int) -> float:
        """The progress at which round `number`, from 1, is held."""
        share = (number - 1) / (self.settings.iterations - 1) if self.settings.iterations > 1 else 1.0
        return self.settings.begin + (self.settled_at - self.settings.begin) * share

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
            return select(scores, self.cost, self._target(done), limits=self.settings.limits, scope=self.settings.scope)
        heads, neurons = (self._counted(f, getattr(scores, f), done) for f in ("heads", "neurons"))
        ranks = [{role: tuple(range(int(r))) for role, r in c.ranks.items()} for c in scores.counts]
        return Structure(tuple(map(LayerStructure, heads, neurons, ranks)))

    def _counted(self, family: str, scores: Sequence[Tensor], done: float) -> list[Indices]:
        """The units of one family that stay, exactly as many as asked for when all is done."""
        wanted = self.wanted[family]
        if wanted is None:
            return [tuple(range(len(values))) for values in scores]
        align, even = self.settings.align.get(family, 1), self.settings.scope == "layer" or self.settings.even == family
        start, end = sum(int(getattr(c, family)) for c in self.counts), wanted * len(scores)
        step = align * len(scores) if even else align
        count = end + int((start - end) * (1 - done) + 1e-6) // step * step
        floor = 0 if self.settings.allow_empty else self.settings.floor.get(family, 1)
        return select_counts(scores, count, floor=floor, align=align, even=even)

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
        return float(fraction(self.cost_of(shape_of(self.net)), counts))

    # what is scored --------------------------------------------------------------------------------------------------

    def _loss(self, batch: Batch) -> Tensor:
        """The sum of the rows' losses, each of which is its own row's alone."""
        return self.task.row_losses(self.net(**self.task.inputs(batch)), batch).sum()

    def _batches(self) -> Iterator[Batch]:
        """Yields the scored training rows, the same in every round and every process."""
        if self.settings.importance_from == "logits" and self.drawn is None:
            self.drawn = self._draw()
        for rows, batch in self._rows():
            yield (batch if self.drawn is None else {**batch, "labels": self.drawn[rows].to(batch["labels"].device)})

    def _rows(self) -> Iterator[tuple[np.ndarray, Batch]]:
        """Yields (positions among the scored rows, batch); rows of similar length stand together."""
        data = self.task.encoded(self.settings.score_split)
        order = np.random.default_rng(self.settings.score_seed).permutation(len(data))[: self.settings.score_rows]
        positions = np.argsort(np.asarray(data.lengths)[order], kind="stable")
        device = next(self.net.parameters()).device
        cuts = [*range(0, len(positions), self.task.batch_size), len(positions)]
        for start, end in pairwise(cuts):
            rows = positions[start:end]
            batch = self.task.collate([data[int(i)] for i in order[rows]])
            yield rows, self.task.to_device(batch, device)

    @torch.no_grad()
    def _draw(self) -> Tensor:
        """Labels of the scored rows from the model's own predictions."""
        found: dict[int, Tensor] = {}
        generator = np.random.default_rng([self.settings.score_seed, 1])
        total = len(self.task.encoded(self.settings.score_split))
        total = min(total, self.settings.score_rows or total)
        uniform = torch.from_numpy(generator.random((total, self.task.num_labels)))
        for rows, batch in self._rows():
            logits = self.net(**self.task.inputs(batch)).logits.cpu()
            labels = drawn_labels(logits, uniform[rows], self.task.problem)
            found |= dict(zip(rows.tolist(), labels, strict=True))
        return torch.stack([found[row] for row in range(total)])
