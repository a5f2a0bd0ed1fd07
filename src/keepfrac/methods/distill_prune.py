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
teacher without dropout, no padding in the losses, labels beside the teacher.
"""

from keepfrac.prune.elements import Pattern
from keepfrac.training.weight_pruning import ElementPruner, Pace


class DistillPrune(ElementPruner):
    """Prunes single weights gradually, then recovers.

    Args:
        name: see ElementPruner, as for keep_frac, score, decay and regrow.
        scope: uniform (the same share of each matrix) | global (all matrices compete).
        floor: under global, the least that each matrix keeps, as a part of keep_frac, in [0, 1].
        structure: element | 2:4 | 4:8 (both keep 0.5) | block.
        block: edge of a square block, a divisor of the matrices' edges.
        warm_up: share of training before the first change of the masks, in [0, 1).
        cool_down: share of training after the last one, in [0, 1).
        updates: changes of the masks between them, >= 1.
        hold_rate: whether the learning rate stays at its peak until the masks are frozen, and falls to 0 from there;
            else it falls from its peak, as in every other method.
    """

    def __init__(
        self,
        *,
        net,
        task,
        loop,
        name,
        keep_frac,
        scope,
        floor,
        score,
        decay,
        structure,
        block,
        warm_up,
        cool_down,
        updates,
        regrow,
        hold_rate,
    ):
        pattern = Pattern(scope, floor, structure, block)
        super().__init__(net, task, loop, name, keep_frac, pattern, score, decay, regrow)
        self.pace = Pace(warm_up, 1 - cool_down, updates)
        self.settled_at = self.pace.end
        self.hold_rate = hold_rate

    @staticmethod
    def check(settings: dict) -> None:
        """Checks what needs no model."""
        Pattern(*(settings[key] for key in ("scope", "floor", "structure", "block"))).check(settings["keep_frac"])
        Pace(settings["warm_up"], 1 - settings["cool_down"], settings["updates"])

    def target(self, done: int) -> float | None:
        return self.pace.target(done, self.loop.total_steps, self.keep_frac)

    def param_groups(self) -> list[dict]:
        groups = super().param_groups()
        return [{**group, "schedule": self._held} for group in groups] if self.hold_rate else groups

    def _held(self, progress: float) -> float:
        """The factor of the rate that is held."""
        if progress < self.loop.warmup:
            return self.schedule(progress)
        return min(1.0, (1 - progress) / (1 - self.settled_at)) if self.settled_at < 1 else 1.0
