"""Metrics of masked language modelling, over the masked tokens of a whole set."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchmetrics import Metric


class MeanOverTokens(Metric):
    """A mean over masked tokens."""

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.double), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.double), dist_reduce_fx="sum")

    def mean(self) -> Tensor:
        """Returns it, float64."""
        return self.total / self.count


class Perplexity(MeanOverTokens):
    """exp of the mean cross entropy, in nats, of the masked tokens."""

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Adds logits (tokens, vocabulary) and true tokens (tokens,)."""
        self.total += cross_entropy(logits.float(), target, reduction="sum").double()
        self.count += len(target)

    def compute(self) -> Tensor:
        """Returns it."""
        return self.mean().exp()


class MaskedAccuracy(MeanOverTokens):
    """Share of the masked tokens that are the most likely ones."""

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Adds logits (tokens, vocabulary) and true tokens (tokens,)."""
        self.total += (logits.argmax(-1) == target).sum()
        self.count += len(target)

    def compute(self) -> Tensor:
        """Returns it."""
        return self.mean()
