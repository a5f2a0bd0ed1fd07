"""The gradient of an optimizer step that several batches share: accumulated ones, or those of several processes.

It is that of one batch of all their rows. Each batch counts by the equal parts that its loss is a mean over: rows where
a row has one loss, tokens where each token has its own (the masked ones of `mlm`, those of references in data-to-text).
The last group of an epoch, which may hold fewer batches, is divided by what is there. Terms that a method or a teacher
adds have the weight of the batch that they were computed on.
"""

from collections.abc import Iterable

import torch
from torch import nn

from keepfrac.training.options import mean_over_processes


class GroupMean:
    """Weights of the batches of one optimizer step, of which the loop takes the plain mean.

    Args:
        accumulate: batches of one process in a full group, >= 1.
        processes: of the run, >= 1.
        rows: of a full batch; a batch of as many terms weighs exactly 1, so that equal batches keep their bits.
    """

    def __init__(self, accumulate: int, processes: int, rows: int):
        self.accumulate, self.rows = accumulate, rows
        self.alone = accumulate * processes == 1
        self.weight, self._total = 1.0, 0.0

    def add(self, terms: int) -> None:
        """Takes the next batch, whose loss is a mean over `terms` equal parts; its weight is `weight`."""
        if not self.alone:
            self.weight = terms / self.rows
            self._total += self.weight

    def divide(self, parameters: Iterable[nn.Parameter]) -> None:
        """Makes the gradients those of the group, at its end and before they are clipped."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if self.alone or not gradients:
            return
        own = torch.tensor(self._total, dtype=torch.float32, device=gradients[0].device)
        total = mean_over_processes(own).item()
        self._total = 0.0
        if total not in (0.0, self.accumulate):
            torch._foreach_mul_(gradients, self.accumulate / total)
