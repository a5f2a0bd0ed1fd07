"""Metrics over a whole set, as torchmetrics: never an average over batches, the same for any number of processes.

Numbers follow the official GLUE script (scikit-learn and scipy) also where a column is constant: there F1, Matthews and
the correlations are 0, not NaN, so that "best" stays defined for a model that has learnt nothing yet.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchmetrics import MeanSquaredError, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score
from torchmetrics.utilities import dim_zero_cat

from keepfrac.errors import UserError
from keepfrac.tasks.metrics import multi_label, text
from keepfrac.tasks.metrics.masked_lm import MaskedAccuracy, Perplexity


class BinaryCounts(Metric):
    """Counts of the four outcomes; class 1 is the positive one."""

    full_state_update = False
    counts: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(4, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Adds predicted and true classes, both (rows,)."""
        self.counts += torch.bincount(2 * preds.long() + target.long(), minlength=4)

    def outcomes(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns true negatives, false negatives, false positives, true positives, float64."""
        return tuple(self.counts.double())


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    return torch.where(below > 0, above / below.clamp(min=torch.finfo(torch.double).tiny), 0.0)


class F1(BinaryCounts):
    """F1 of class 1."""

    def compute(self) -> Tensor:
        """Returns it; 0 where no row is or is called positive."""
        _, missed, wrong, right = self.outcomes()
        return _ratio(2 * right, 2 * right + missed + wrong)


class Precision(BinaryCounts):
    """Share of class 1 among the rows that are called it."""

    def compute(self) -> Tensor:
        """Returns it; 0 where no row is called class 1."""
        _, _, wrong, right = self.outcomes()
        return _ratio(right, right + wrong)


class Recall(BinaryCounts):
    """Share of the rows of class 1 that are called it."""

    def compute(self) -> Tensor:
        """Returns it; 0 where no row is of class 1."""
        _, missed, _, right = self.outcomes()
        return _ratio(right, right + missed)


class AccuracyAndF1(BinaryCounts):
    """The mean of accuracy and F1, the official score of MRPC and QQP."""

    def compute(self) -> Tensor:
        """Returns it."""
        rejected, missed, wrong, right = self.outcomes()
        accuracy = (right + rejected) / self.counts.sum()
        return (accuracy + _ratio(2 * right, 2 * right + missed + wrong)) / 2


class Matthews(BinaryCounts):
    """Matthews correlation coefficient."""

    def compute(self) -> Tensor:
        """Returns it; 0 where predictions or targets are all of one class."""
        tn, fn, fp, tp = self.outcomes()
        below = ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)).sqrt()
        return _ratio(tp * tn - fp * fn, below)


class Correlation(Metric):
    """Keeps all predicted and true scores."""

    full_state_update = False
    preds: list[Tensor]
    target: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("preds", [], dist_reduce_fx="cat")
        self.add_state("target", [], dist_reduce_fx="cat")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Adds predicted and true scores, both (rows,)."""
        self.preds.append(preds.float())
        self.target.append(target.float())

    def both(self) -> tuple[Tensor, Tensor]:
        """Returns predictions and targets, float64 (rows,)."""
        return dim_zero_cat(self.preds).double(), dim_zero_cat(self.target).double()


def pearson(x: Tensor, y: Tensor) -> Tensor:
    """Returns Pearson's correlation of two vectors; 0 where one is constant."""
    if x.min() == x.max() or y.min() == y.max():
        return x.new_zeros(())
    x, y = x - x.mean(), y - y.mean()
    return _ratio((x * y).sum(), x.norm() * y.norm())


def ranks(x: Tensor) -> Tensor:
    """Returns the ranks of a vector from 1; equal values share the mean of theirs."""
    _, inverse, counts = torch.unique(x, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts.double() - 1) / 2)[inverse]


class Pearson(Correlation):
    """Pearson's correlation."""

    def compute(self) -> Tensor:
        """Returns it."""
        return pearson(*self.both())


class Spearman(Correlation):
    """Spearman's rank correlation."""

    def compute(self) -> Tensor:
        """Returns it."""
        preds, target = self.both()
        return pearson(ranks(preds), ranks(target))


class PearsonAndSpearman(Correlation):
    """The mean of both correlations, the official score of STS-B."""

    def compute(self) -> Tensor:
        """Returns it."""
        preds, target = self.both()
        return (pearson(preds, target) + pearson(ranks(preds), ranks(target))) / 2


BINARY = {"f1": F1, "acc_and_f1": AccuracyAndF1, "mcc": Matthews, "precision": Precision, "recall": Recall}
ANY_CLASSES = {"accuracy": "micro", "f1_macro": "macro"}
REGRESSION = {
    "pearson": Pearson,
    "spearman": Spearman,
    "pearson_and_spearman": PearsonAndSpearman,
    "mse": MeanSquaredError,
}
MASKED = {"perplexity": Perplexity, "masked_accuracy": MaskedAccuracy}
LESS_IS_BETTER = frozenset({"loss", "mse", "ece", "scaled_ece", "perplexity"})


def direction(metric: str) -> str:
    """Returns "min" or "max": where the better values of `metric` are."""
    return "min" if metric in LESS_IS_BETTER else "max"


def allowed(problem: str, num_labels: int | None = None) -> tuple[str, ...]:
    """Returns the names of the metrics that fit; `num_labels` None: not known yet."""
    named = {
        "regression": tuple(REGRESSION),
        "multi_label": multi_label.NAMES,
        "masked_lm": tuple(MASKED),
        "generation": tuple(text.SCORES),
    }
    if problem in named:
        return named[problem]
    return (*ANY_CLASSES, *BINARY) if num_labels in {None, 2} else tuple(ANY_CLASSES)


def check(names: Sequence[str], problem: str, num_labels: int | None = None) -> None:
    """Raises a UserError that lists what there is, if a name does not fit the problem."""
    for name in names:
        if name not in allowed(problem, num_labels):
            classes = "" if num_labels is None or problem != "classification" else f" of {num_labels} classes"
            fitting = ", ".join(allowed(problem, num_labels))
            raise UserError(f"task.metrics: {name} is no metric of a {problem}{classes}; allowed are {fitting}")


def collection(
    names: Sequence[str], problem: str, num_labels: int, tested: Callable[[], bool] = lambda: False
) -> MetricCollection:
    """Returns fresh metrics by their plain names; updated with what the task's `predict` returns.

    Args:
        names: of `allowed`.
        problem: of the task.
        num_labels: of the task.
        tested: whether what is scored is a test set, on which nothing is fitted.
    """
    check(names, problem, num_labels)
    if problem == "multi_label":
        calibration = multi_label.Calibration(tested)
        return MetricCollection({name: multi_label.metric(name, calibration) for name in names})
    return MetricCollection({name: _metric(name, num_labels) for name in names})


def _metric(name: str, num_labels: int) -> Metric:
    if name == "accuracy":  # micro: the default of torchmetrics is the macro average
        return MulticlassAccuracy(num_classes=num_labels, average="micro")
    if name == "f1_macro":
        return MulticlassF1Score(num_classes=num_labels, average="macro")
    return (BINARY | REGRESSION | MASKED)[name]()
