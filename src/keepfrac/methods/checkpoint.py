"""Checkpointing of every layer: the known way to exchange time for memory, as a baseline.

The forward pass saves each layer's input alone; the backward pass runs the layer again before it can go through it.
Gradients are exact (dropout draws the same masks again). About a third more arithmetic.

keep_frac is 1: nothing is left out of any gradient.

Source: Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost"; Transformers' own switch, PyTorch's
non-reentrant implementation.
"""

from collections.abc import Iterable
from typing import Any

from keepfrac.errors import UserError
from keepfrac.training.finetune import Batch, FineTune


class CheckpointEachLayer(FineTune):
    """Dense fine-tuning that recomputes every layer in the backward pass."""

    def prepare(self, batches: Iterable[Batch]) -> None:
        net: Any = self.net
        if not getattr(net, "supports_gradient_checkpointing", False):
            raise UserError(f"method checkpoint: a {type(net).__name__} cannot be checkpointed")
        if not net.is_activation_checkpointing:
            net.activation_checkpointing_enable({"use_reentrant": False})

    def finish(self, batches: Iterable[Batch]) -> None:
        net: Any = self.net
        if net.is_activation_checkpointing:
            net.activation_checkpointing_disable()
