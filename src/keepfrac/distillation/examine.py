"""A teacher's own score on the task, before distillation."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from keepfrac.errors import UserError
from keepfrac.measurement.costs import autocast

CLASSES = 6  # more have too many orders to try


@torch.no_grad()
def examine(teacher: nn.Module, task, device: torch.device, precision: str) -> dict[str, float]:
    """Returns the teacher's scores on the validation split, "val/<metric>" and "val/loss".

    Raises:
        UserError: it would score far better with its labels in another order.
    """
    mode = teacher.training
    teacher.to(device).eval()
    metrics, losses, rows = task.metrics("val").to(device), 0.0, 0
    predicted, true = [], []
    for batch in task.val_dataloader():
        batch = task.to_device(batch, device)
        with autocast(device, precision):
            outputs = teacher(**task.inputs(batch))
        predictions, targets = task.scored(teacher, outputs, batch)
        metrics.update(predictions, targets)
        losses, rows = losses + task.loss(outputs, batch).item() * len(targets), rows + len(targets)
        predicted.append(predictions.cpu())
        true.append(targets.cpu())
    teacher.train(mode)
    if task.problem == "classification":
        check_order(torch.cat(predicted), torch.cat(true), task.labels)
    scores = {f"val/{name}": float(value) for name, value in metrics.compute().items()}
    return {**scores, "val/loss": losses / rows}


def check_order(predicted: Tensor, true: Tensor, labels: tuple[str, ...]) -> None:
    """Refuses predictions that fit the labels in another order better, by three standard errors.

    Raises:
        UserError: names the order.
    """
    classes, rows = len(labels), len(true)
    if classes > CLASSES:
        return
    counts = torch.bincount(true * classes + predicted, minlength=classes * classes).view(classes, classes)
    share = {
        order: sum(int(counts[label, place]) for label, place in enumerate(order)) / rows
        for order in itertools.permutations(range(classes))
    }
    own, best = share[tuple(range(classes))], max(share, key=lambda order: share[order])
    if share[best] - own > 3 / rows**0.5:
        order = ", ".join(labels[best.index(place)] for place in range(classes))
        raise UserError(
            f"the teacher's accuracy is {own:.3f} with its labels as {', '.join(labels)}, and {share[best]:.3f} as"
            f" {order}: its label order disagrees with the task's"
        )
