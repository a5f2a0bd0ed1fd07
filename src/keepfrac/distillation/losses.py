"""The terms of distillation, as functions of what student and teacher gave for one batch.

    att   mean over rows of the mean over pairs of real tokens and heads of (S_student - S_teacher)^2,
          S = Q K^T / sqrt(d)
    rep   mean over rows of the mean over real tokens and width of (H_student - H_teacher)^2
    cls   T^2 KL(softmax(z_teacher / T) || softmax(z_student / T)), mean over rows; a regression: squared error

Each row counts the same, long or short, so a batch that is shared out over processes has the loss of the whole one.
TinyBERT (Jiao et al. 2020), eqs. (7) to (10); SparseBERT (Xu et al. 2021) sums the same over its layers. There padding
counts: with `padding="included"` every position enters the mean, and only the scores of padded keys are 0 in both.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, kl_div, log_softmax, mse_loss


def attention_loss(student: Tensor, teacher: Tensor, mask: Tensor, padding: str) -> Tensor:
    """Returns the squared difference of two layers' scores; where their heads differ in number, of their means.

    Args:
        student: scores before the softmax, (batch, heads, length, length).
        teacher: the same of the teacher, of any number of heads.
        mask: 1 where a token is real, (batch, length).
        padding: "masked" or "included".
    """
    if student.shape[1] != teacher.shape[1]:
        student, teacher = student.mean(1, keepdim=True), teacher.mean(1, keepdim=True)
    keys = mask[:, None, None, :].float()
    weight = keys * mask[:, None, :, None] if padding == "masked" else keys
    counted = weight if padding == "masked" else torch.ones_like(student[:, :1], dtype=torch.float32)
    return _squared(student, teacher, weight, counted.sum((1, 2, 3)) * student.shape[1])


def hidden_loss(student: Tensor, teacher: Tensor, mask: Tensor, padding: str) -> Tensor:
    """Returns the squared difference of two hidden states (batch, length, width)."""
    weight = mask[:, :, None].float() if padding == "masked" else torch.ones_like(mask[:, :, None]).float()
    return _squared(student, teacher, weight, weight.sum((1, 2)) * student.shape[-1])


def logits_loss(student: Tensor, teacher: Tensor, temperature: float, average: str) -> Tensor:
    """Returns the divergence of the student's classes from the teacher's, or the squared error of one number.

    Args:
        student: (batch, classes); (batch, 1): a regression.
        teacher: the same.
        temperature: T > 0, of both.
        average: "rows"; or "elements", over rows and classes, as SparseBERT's code has it.
    """
    student, teacher = student.float(), teacher.float()
    if student.shape[-1] == 1:
        return mse_loss(student, teacher)
    scaled = log_softmax(student / temperature, -1), log_softmax(teacher / temperature, -1)
    divergence = kl_div(*scaled, log_target=True, reduction="batchmean") * temperature**2
    return divergence / (student.shape[-1] if average == "elements" else 1)


def labels_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Returns the cross entropy of each label by itself, for rows of any number of labels, times T^2."""
    wanted = torch.sigmoid(teacher.float() / temperature)
    return binary_cross_entropy_with_logits(student.float() / temperature, wanted) * temperature**2


def _squared(student: Tensor, teacher: Tensor, weight: Tensor, count: Tensor) -> Tensor:
    """The weighted squared difference of each row over its count, (batch,), mean over rows."""
    squares = (student.float() - teacher.float()).square() * weight
    return (squares.flatten(1).sum(1) / count).mean()
