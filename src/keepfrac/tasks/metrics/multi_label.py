"""Scores of tasks in which a row has any number of labels, none included.

N rows, K labels, logits z_ik, truth y_ik in {0, 1}, p_ik = sigmoid(z_ik), and

    mlogloss = -1/(N K) sum_ik [y_ik log p_ik + (1 - y_ik) log(1 - p_ik)],  p clipped to [1e-15, 1 - 1e-15]

    one_minus_mlogloss             1 - mlogloss: the metric of GAIIC-2021 as its organisers documented it
    legacy_one_minus_2mlogloss     1 - 2 mlogloss: what the original project computed for a while under that name
    f1_micro, f1_macro             at p > 1/2; 0 where a label is neither true nor predicted
    subset_accuracy                share of rows whose labels are all right
    map                            mean average precision over the labels that occur in the set
    ece                            expected calibration error over all N K pairs, 15 bins of p of equal width
    temperature                    T that minimises mlogloss of z / T on the validation set (Guo et al. 2017)
    scaled_one_minus_mlogloss, scaled_ece     the same two of z / T; the model itself is delivered unscaled
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

LOG_CLIP = math.log(1e-15)
BINS = 15
COLDEST, HOTTEST = 0.01, 100.0
HALVINGS = 50
Score = Callable[[Tensor, Tensor], Tensor]


def mlogloss(logits: Tensor, targets: Tensor) -> Tensor:
    """Returns the mean binary cross entropy of logits and truth, both (rows, labels)."""
    positive, negative = (logsigmoid(side).clamp(min=LOG_CLIP) for side in (logits, -logits))
    return -(targets * positive + (1 - targets) * negative).mean()


def one_minus_mlogloss(logits: Tensor, targets: Tensor) -> Tensor:
    """Returns 1 - mlogloss."""
    return 1 - mlogloss(logits, targets)


def legacy_one_minus_2mlogloss(logits: Tensor, targets: Tensor) -> Tensor:
    """Returns 1 - 2 mlogloss, for comparison with figures that were made so."""
    return 1 - 2 * mlogloss(logits, targets)


def _f1(logits: Tensor, targets: Tensor, over: tuple[int, ...]) -> Tensor:
    called = (logits > 0).to(targets.dtype)
    both = called.sum(over) + targets.sum(over)
    return torch.where(both > 0, 2 * (called * targets).sum(over) / both.clamp(min=1), 0.0)


def f1_micro(logits: Tensor, targets: Tensor) -> Tensor:
    """Returns F1 over all pairs of a row and a label."""
    return _f1(logits, targets, (0, 1))


def f1_macro(logits: Tensor, targets: Tensor) -> Tensor:
    """Returns the mean over labels of their F1."""
    return _f1(logits, targets, (0,)).mean()


def subset_accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """Returns the share of rows whose labels are all right."""
    return ((logits > 0) == (targets > 0)).all(1).to(logits.dtype).mean()


def average_precision(scores: Tensor, targets: Tensor) -> Tensor:
    """Returns sum_n (R_n - R_{n-1}) P_n over the thresholds n of one label; equal scores are one. Both are (rows,)."""
    order = scores.argsort(descending=True, stable=True)
    scores, targets = scores[order], targets[order]
    last = torch.cat([scores[1:] != scores[:-1], scores.new_ones(1, dtype=torch.bool)])
    right = targets.cumsum(0)[last]
    called = torch.arange(1, len(scores) + 1, dtype=right.dtype, device=right.device)[last]
    recall = right / right[-1]
    return (torch.diff(recall, prepend=recall.new_zeros(1)) * right / called).sum()


def mean_average_precision(logits: Tensor, targets: Tensor) -> Tensor:
    """Returns the mean over the labels that occur; 0 where none does."""
    found = [average_precision(z, y) for z, y in zip(logits.T, targets.T, strict=True) if y.any()]
    return torch.stack(found).mean() if found else logits.new_zeros(())


def calibration_error(logits: Tensor, targets: Tensor) -> Tensor:
    """Returns sum over bins of their share times |mean p - share of true labels| (Naeini et al. 2015)."""
    p, y = logits.sigmoid().flatten(), targets.flatten()
    bins = (p * BINS).long().clamp(max=BINS - 1)
    gaps = p.new_zeros(BINS).index_add_(0, bins, p - y)
    return gaps.abs().sum() / len(p)


def fit_temperature(logits: Tensor, targets: Tensor) -> float:
    """Returns the T in [0.01, 100] that minimises mlogloss of logits / T.

    The loss is convex in a = 1/T, so its minimum is where its slope sum z (sigmoid(a z) - y) changes sign.
    """
    low, high = math.log(1 / HOTTEST), math.log(1 / COLDEST)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        rising = (logits * ((logits * math.exp(middle)).sigmoid() - targets)).sum() > 0
        low, high = (low, middle) if rising else (middle, high)
    return math.exp(-(low + high) / 2)


class Calibration:
    """The temperature of a task: fitted on validation, kept for the test."""

    def __init__(self) -> None:
        self.temperature = 1.0

    def __call__(self, split: str, logits: Tensor, targets: Tensor) -> Tensor:
        """Returns the temperature for these logits, both (rows, labels)."""
        if split != "test":
            self.temperature = fit_temperature(logits, targets)
        return logits.new_tensor(self.temperature)

    def scaled(self, score: Score, split: str, logits: Tensor, targets: Tensor) -> Tensor:
        """Returns a score of logits / T."""
        return score(logits / self(split, logits, targets), targets)


SCORES: dict[str, Score] = {
    "one_minus_mlogloss": one_minus_mlogloss,
    "legacy_one_minus_2mlogloss": legacy_one_minus_2mlogloss,
    "f1_micro": f1_micro,
    "f1_macro": f1_macro,
    "subset_accuracy": subset_accuracy,
    "map": mean_average_precision,
    "ece": calibration_error,
}
SCALED: dict[str, Score] = {"scaled_one_minus_mlogloss": one_minus_mlogloss, "scaled_ece": calibration_error}
NAMES = (*SCORES, *SCALED, "temperature")


def score_functions(split: str, calibration: Calibration) -> dict[str, Score]:
    """Returns the functions of all NAMES: of logits and truth, both float64 (rows, labels).

    Args:
        split: "val" or "test".
        calibration: of the task.
    """
    scaled: dict[str, Score] = {name: partial(calibration.scaled, score, split) for name, score in SCALED.items()}
    return SCORES | scaled | {"temperature": partial(calibration, split)}
