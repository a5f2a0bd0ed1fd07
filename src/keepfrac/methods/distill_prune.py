"""distill_prune: a pre-trained student is fine-tuned under a teacher while single weights of its encoder are pruned.

Idea: pruning while distilling lets the student keep what pre-training taught it (its start) and receive what the
teacher knows of the task (Xu et al. 2021, SparseBERT). Over training, with w = `warm_up` and c = `cool_down`,

    kept(t) = 1 - (1 - keep_frac) (1 - (1 - r)^3),  r = (t - w) / (1 - c - w) in [0, 1]

(Zhu & Gupta 2017, eq. (1)), by exact rank of the scores; after 1 - c the mask is frozen and the weights recover. The
teacher and its terms are the `distill` group's: `distill.teacher=<run, folder or hub name>`, by default hidden states,
logits and labels (`distill=hidden`; `distill=tinybert` adds the attention scores). Without a teacher this is
gradual pruning without distillation; with keep_frac=1 it is distillation without pruning; with epochs=0 it prunes the
model once, by magnitude.

keep_frac is the share of the weights of the encoder's six linears a layer that stays; all other weights stay whole.

Departures from the paper's released code (`method=sparsebert`): a phase of recovery, exact counts, gradients and
moments of pruned weights at zero, a decaying rate with warm-up, the best checkpoint among those of the final size, a
teacher without dropout, no padding in the losses, the labels' loss too.
"""

from keepfrac.errors import UserError
from keepfrac.prune.elements import GROUPS, SCOPES, SCORES, STRUCTURES, SparsityPattern
from keepfrac.settings import choice, count, flag, settings, share
from keepfrac.training.weight_pruning import PruningSchedule, WeightPruner


class DistillPrune(WeightPruner):
    """Prunes single weights gradually, then recovers."""

    @settings
    class Settings(WeightPruner.Settings):
        scope: str = choice(
            "where keep_frac holds; uniform: the same share of each matrix; global: all matrices compete", *SCOPES
        )
        floor: float = share("under global, the least that each matrix keeps, as a part of keep_frac")
        score: str = choice("how much a weight matters", *SCORES)
        decay: float = share("decay of fisher's moving average of squared gradients", "[)")
        structure: str = choice("what stays together; 2:4 and 4:8 keep 0.5", *STRUCTURES)
        block: int = count("edge of a square block, a divisor of the matrices' edges")
        warm_up: float = share("share of training before the first change of the masks", "[)")
        cool_down: float = share("share of training after the last one: the weights recover", "[)")
        regrow: float = share(
            "of what stays, what each change gives back to pruned weights of the largest gradients; 0: nothing", "[)"
        )
        hold_rate: bool = flag(
            "whether the learning rate stays at its peak until the masks are frozen, and falls to 0 from there; else it"
            " falls from its peak, as in every other method"
        )

        def check(self) -> None:
            super().check()
            if self.warm_up >= 1 - self.cool_down:
                raise UserError(
                    f"method.warm_up={self.warm_up}, cool_down={self.cool_down}: must be shares of training that leave"
                    " something between them"
                )
            if self.structure in GROUPS and self.keep_frac not in (0.5, 1):
                raise self.error("keep_frac", f"structure={self.structure} keeps 0.5, no more and no less")

    settings: Settings

    def __init__(self, net, task, loop, settings: Settings):
        super().__init__(net, task, loop, settings)
        self.pattern = SparsityPattern(
            scope=settings.scope, floor=settings.floor, structure=settings.structure, block=settings.block
        )
        self.score, self.decay, self.regrow = settings.score, settings.decay, settings.regrow
        self.pruning_schedule = PruningSchedule(
            start=settings.warm_up, end=1 - settings.cool_down, updates=settings.updates
        )
        self.settled_at = self.pruning_schedule.end

    def target(self, done: int) -> float | None:
        return self.pruning_schedule.target(done, self.loop.total_steps, self.keep_frac)

    def param_groups(self) -> list[dict]:
        groups = super().param_groups()
        return [{**group, "schedule": self._held} for group in groups] if self.settings.hold_rate else groups

    def _held(self, progress: float) -> float:
        """The factor of the rate that is held."""
        if progress < self.loop.warmup:
            return self.schedule(progress)
        return min(1.0, (1 - progress) / (1 - self.settled_at)) if self.settled_at < 1 else 1.0
