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

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

LOG_CLIP = math.log(1e-15)
BINS = 15
COLDEST, HOTTEST = 0.01, 100.0
HALVINGS = 50


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
    place = (p * BINS).long().clamp(max=BINS - 1)
    gaps = p.new_zeros(BINS).index_add_(0, place, p - y)
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
    """The temperature: fitted on what is scored, unless that is a test; then the last fitted one.

    Args:
        tested: whether what is scored now is a test set.
    """

    def __init__(self, tested: Callable[[], bool]):
        self.tested, self.temperature = tested, 1.0

    def __call__(self, logits: Tensor, targets: Tensor) -> float:
        """Returns the temperature for these logits, both (rows, labels)."""
        if not self.tested():
            self.temperature = fit_temperature(logits, targets)
        return self.temperature


Score = Callable[[Tensor, Tensor], Tensor]


class Judged(Metric):
    """Keeps all logits and the truth; gives one score of them.

    Args:
        score: of logits and truth, both float64 (rows, labels).
        calibration: divides the logits first; None: they stay.
    """

    full_state_update = False
    logits: list[Tensor]
    targets: list[Tensor]

    def __init__(self, score: Score, calibration: Calibration | None):
        super().__init__()
        self.score, self.calibration = score, calibration
        self.add_state("logits", [], dist_reduce_fx="cat")
        self.add_state("targets", [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Adds a batch, both (rows, labels)."""
        self.logits.append(logits.float())
        self.targets.append(targets.float())

    def compute(self) -> Tensor:
        """Returns the score."""
        logits, targets = dim_zero_cat(self.logits).double(), dim_zero_cat(self.targets).double()
        return self.score(logits / self.calibration(logits, targets) if self.calibration else logits, targets)


class Temperature(Judged):
    """The temperature itself."""

    def compute(self) -> Tensor:
        """Returns it."""
        assert self.calibration is not None
        logits, targets = dim_zero_cat(self.logits).double(), dim_zero_cat(self.targets).double()
        return torch.tensor(self.calibration(logits, targets), dtype=torch.double)


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


def metric(name: str, calibration: Calibration) -> Metric:
    """Returns a fresh metric of one of NAMES."""
    if name == "temperature":
        return Temperature(mlogloss, calibration)
    return Judged(SCALED[name], calibration) if name in SCALED else Judged(SCORES[name], None)
