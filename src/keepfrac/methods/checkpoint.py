"""Checkpointing of every layer: the known way to exchange time for memory, as a baseline.

The forward pass saves each layer's input alone; the backward pass runs the layer again before it can go through it.
Gradients are exact (dropout draws the same masks again). About a third more arithmetic.

keep_frac is 1: nothing is left out of any gradient. No layer is changed, so that `backward=` may be set too.

Source: Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost"; Transformers' own switch, PyTorch's
non-reentrant implementation.
"""

from collections.abc import Iterable

from keepfrac.settings import settings
from keepfrac.sparse.recompute import CheckpointedLayers
from keepfrac.training.finetune import Batch, FineTune


class CheckpointEachLayer(FineTune):
    """Dense fine-tuning that recomputes every layer in the backward pass."""

    @settings
    class Settings(FineTune.Settings, CheckpointedLayers.Settings):
        pass

    def __init__(self, net, task, loop, settings):
        super().__init__(net, task, loop, settings)
        self.checkpointed = CheckpointedLayers(settings)

    def prepare(self, batches: Iterable[Batch]) -> None:
        self.checkpointed.attach(self.net)

    def finish(self, batches: Iterable[Batch]) -> None:
        self.checkpointed.detach()
