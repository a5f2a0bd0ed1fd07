"""Metrics over a whole set, as torchmetrics: never an average over batches, the same for any number of processes.

Numbers follow the official GLUE script (scikit-learn and scipy) also where a column is constant: there F1, Matthews and
the correlations are 0, not NaN, so that "best" stays defined for a model that has learnt nothing yet.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torchmetrics import MeanSquaredError, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score
from torchmetrics.utilities import dim_zero_cat

from keepfrac.errors import UserError
from keepfrac.tasks.metrics import answers, entities, multi_label, retrieval, text
from keepfrac.tasks.metrics.masked_lm import MaskedAccuracy, Perplexity

Score = Callable[[Tensor, Tensor], Tensor]


class WholeSetScore(Metric):
    """Keeps all predictions and targets, in float32; gives one score of them.

    Args:
        score: of predictions and targets, both float64.
    """

    full_state_update = False
    preds: list[Tensor]
    target: list[Tensor]

    def __init__(self, score: Score):
        super().__init__()
        self.score = score
        self.add_state("preds", [], dist_reduce_fx="cat")
        self.add_state("target", [], dist_reduce_fx="cat")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Adds a batch: predicted and true classes or scores (rows,), or logits and truth (rows, labels)."""
        self.preds.append(preds.float())
        self.target.append(target.float())

    def compute(self) -> Tensor:
        """Returns the score."""
        return self.score(dim_zero_cat(self.preds).double(), dim_zero_cat(self.target).double())


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    return torch.where(below > 0, above / below.clamp(min=torch.finfo(torch.double).tiny), 0.0)


def f1(preds: Tensor, target: Tensor) -> Tensor:
    """Returns F1 of class 1, of classes 0 and 1; 0 where no row is or is called 1."""
    return _ratio(2 * (preds * target).sum(), preds.sum() + target.sum())


def precision(preds: Tensor, target: Tensor) -> Tensor:
    """Returns the share of class 1 among the rows that are called it; 0 where none is."""
    return _ratio((preds * target).sum(), preds.sum())


def recall(preds: Tensor, target: Tensor) -> Tensor:
    """Returns the share of the rows of class 1 that are called it; 0 where none is of class 1."""
    return _ratio((preds * target).sum(), target.sum())


def _of_class_0(score: Score, preds: Tensor, target: Tensor) -> Tensor:
    """Returns a score with class 0 in the place of class 1."""
    return score(1 - preds, 1 - target)


def accuracy_and_f1(preds: Tensor, target: Tensor) -> Tensor:
    """Returns the mean of accuracy and F1, the official score of MRPC and QQP."""
    return ((preds == target).sum() / target.new_tensor(len(target)) + f1(preds, target)) / 2


def matthews(preds: Tensor, target: Tensor) -> Tensor:
    """Returns the Matthews correlation coefficient; 0 where predictions or targets are all of one class."""
    tp = (preds * target).sum()
    fp, fn = preds.sum() - tp, target.sum() - tp
    tn = len(target) - tp - fp - fn
    return _ratio(tp * tn - fp * fn, ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)).sqrt())


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


def spearman(x: Tensor, y: Tensor) -> Tensor:
    """Returns Spearman's rank correlation; 0 where one is constant."""
    return pearson(ranks(x), ranks(y))


def pearson_and_spearman(x: Tensor, y: Tensor) -> Tensor:
    """Returns the mean of both correlations, the official score of STS-B."""
    return (pearson(x, y) + spearman(x, y)) / 2


BINARY: dict[str, Score] = {
    "f1": f1,
    "acc_and_f1": accuracy_and_f1,
    "mcc": matthews,
    "precision": precision,
    "recall": recall,
}
OF_ONE_CLASS = ("f1", "acc_and_f1", "precision", "recall")
"""Scores of one of two classes: of the other they are something else."""
NO_AND_YES = (
    ("0", "1"), ("-1", "1"), ("false", "true"), ("f", "t"), ("no", "yes"), ("n", "y"), ("negative", "positive"),
    ("neg", "pos"),
)  # fmt: skip
"""Names of two classes that say which one is positive, the second."""
ANY_CLASSES = {"accuracy": "micro", "f1_macro": "macro"}
REGRESSION: dict[str, Score | type[Metric]] = {
    "pearson": pearson,
    "spearman": spearman,
    "pearson_and_spearman": pearson_and_spearman,
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
        "token_classification": entities.NAMES,
        "retrieval": retrieval.NAMES,
        "reranking": retrieval.NAMES,
        "question_answering": answers.NAMES,
    }
    if problem in named:
        return named[problem]
    return (*ANY_CLASSES, *BINARY) if num_labels in {None, 2} else tuple(ANY_CLASSES)


def of_one_class(names: Sequence[str]) -> list[str]:
    """Returns those of some metrics that are of the positive class alone."""
    return [name for name in names if name in OF_ONE_CLASS]


def check(names: Sequence[str], problem: str, num_labels: int | None = None) -> None:
    """Raises a UserError that lists what there is, if a name does not fit the problem."""
    for name in names:
        if name not in allowed(problem, num_labels):
            classes = "" if num_labels is None or problem != "classification" else f" of {num_labels} classes"
            fitting = ", ".join(allowed(problem, num_labels))
            raise UserError(f"task.metrics: {name} is no metric of a {problem}{classes}; allowed are {fitting}")


def collection(
    names: Sequence[str],
    problem: str,
    num_labels: int,
    split: str,
    calibration: multi_label.Calibration,
    positive: int = 1,
) -> MetricCollection:
    """Returns fresh metrics by their plain names; updated with what the task's `predict` returns.

    Args:
        names: of `allowed`.
        problem: of the task.
        num_labels: of the task.
        split: "val" or "test".
        calibration: of several labels: fitted on "val", kept for "test".
        positive: number of the class, 0 or 1, that F1, precision and recall are of.
    """
    check(names, problem, num_labels)
    if problem == "multi_label":
        functions = multi_label.score_functions(split, calibration)
        return MetricCollection({name: WholeSetScore(functions[name]) for name in names})
    return MetricCollection({name: _metric(name, num_labels, positive) for name in names})


def _metric(name: str, num_labels: int, positive: int) -> Metric:
    if name in ANY_CLASSES:
        of = MulticlassAccuracy if name == "accuracy" else MulticlassF1Score
        return of(num_classes=num_labels, average=ANY_CLASSES[name])
    if name in BINARY:
        return WholeSetScore(BINARY[name] if positive else partial(_of_class_0, BINARY[name]))
    found = (REGRESSION | MASKED)[name]
    return found() if isinstance(found, type) else WholeSetScore(found)
