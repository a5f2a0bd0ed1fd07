"""sparsebert: what SparseBERT's released code does, its defects included, so that each repair can be measured.

    mask     per matrix, by |w|, about 100 times: with S steps, f = max(1, round(S / 100)) and K = S // f, after step t
             (0 < t < S, f divides t) a share 1 - (1 - keep_frac) (1 - (1 - (t/f)/K)^3) stays; no recovery follows
    rate     constant, no warm-up; Adam without bias correction (BertAdam), eps 1e-6, each tensor's gradient clipped
             by itself; gradients and moments of pruned weights move on
    model    the last one, whatever its score; a ReLU between pooler and classifier

With the preset `distill=sparsebert`, which this method selects: attention scores, hidden states and logits at weight 1,
no labels, padding included, the teacher in train mode and with the same ReLU. Set lr=3e-5 clip=1 weight_decay=0.01 and
the released numbers of epochs (`experiment=sparsebert_mrpc`). Without distill.teacher it learns from the labels.

Not as there: counts are exact by rank (the code keeps everything where zeros tie), batches are of similar length and
padded to their longest row (distill.pad_to=128 pads as it does), and weight decay, which shares the factor that undoes
the bias correction, is up to six times larger in the first hundred steps. Xu et al. 2021, arXiv 2104.08682.

keep_frac is the share of the weights of the encoder's six linears a layer that stays.
"""

from collections.abc import Iterable

from keepfrac.errors import UserError
from keepfrac.models.relu_head import with_relu_head
from keepfrac.prune.schedules import cubic
from keepfrac.settings import choice, number, settings
from keepfrac.training.finetune import Batch
from keepfrac.training.weight_pruning import WeightPruner

BETAS = (0.9, 0.999)
EPS = 1e-6


class SparseBert(WeightPruner):
    """Prunes by magnitude over all of training."""

    @settings
    class Settings(WeightPruner.Settings):
        clip_each: float | None = number("largest norm of each tensor's gradient; null: none", ends="(]", null=True)
        head: str = choice("relu: a ReLU before the classifier, BERT only; own: the model's", "relu", "own")

    settings: Settings

    mask_gradients = False
    settled_at = 1.0

    def prepare(self, batches: Iterable[Batch]) -> None:
        if self.settings.head == "relu" and not self.names and self.loop.total_steps:
            try:
                self.net = with_relu_head(self.net)
            except ValueError as error:
                raise UserError(f"method.head=relu: {error}; set method.head=own distill.head=own") from error
        super().prepare(batches)

    def param_groups(self) -> list[dict]:
        own = {"clip": None, "clip_each": self.settings.clip_each, "eps": EPS, "schedule": self._rate}
        return [group | own for group in super().param_groups()]

    def target(self, done: int) -> float | None:
        total = self.loop.total_steps
        every = max(1, round(total / self.settings.updates))
        if done >= total or done % every:
            return None
        return cubic((done // every) / (total // every), self.keep_frac, start=0.0, end=1.0)

    def _rate(self, progress: float) -> float:
        """Undoes the bias correction of Adam, and is constant otherwise."""
        step = round(progress * self.loop.total_steps) + 1
        first, second = (1 - beta**step for beta in BETAS)
        return first / second**0.5
