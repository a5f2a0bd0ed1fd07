"""Task: what a run learns, and its metrics. How rows are encoded and what the loss is, is the subclasses'."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from torch import Tensor
from torchmetrics import MetricCollection

from keepfrac.errors import UserError
from keepfrac.settings import Kind, count, setting, settings, text
from keepfrac.tasks.account import account
from keepfrac.tasks.loading import Batch, BatchedData
from keepfrac.tasks.metrics import answers, entities, multi_label, retrieval, scores
from keepfrac.tasks.rows import Rows, Splits

DEFAULT_METRICS = {
    "classification": ("accuracy",),
    "regression": ("pearson_and_spearman", "pearson", "spearman"),
    "multi_label": multi_label.NAMES,
    "masked_lm": tuple(scores.MASKED),
    "token_classification": entities.NAMES,
    "retrieval": retrieval.NAMES,
    "reranking": retrieval.NAMES,
    "question_answering": answers.NAMES,
}
NEW_HEADS = frozenset({"sequence_classification", "token_classification", "question_answering"})
"""Heads that a task brings, with new weights; a language model has its own."""
LIST = Kind(
    lambda value: isinstance(value, list | tuple) and all(isinstance(one, str | int | float) for one in value),
    "a list of words or numbers",
)


def token_sums(values: Tensor, positions: Tensor) -> Tensor:
    """Returns the sum of each row, (rows,), of `values` (tokens,) at the true `positions` (rows, length)."""
    rows = positions.nonzero()[:, 0]
    return values.new_zeros(len(positions)).index_add(0, rows, values)


class Task(BatchedData):
    """Data, labels, metrics, loss and prediction of one task.

    A subclass gives `head`, `problem`, `read`, `encode`, `collate`, `loss` and `predict`.

    Raises:
        UserError: a metric that does not fit the problem.
    """

    @settings
    class Settings(BatchedData.Settings):
        """What every task has."""

        name: str = text("the task's name in results")
        rows: int | None = count("training rows, stratified, the same for every seed; null: all", null=True)
        max_length: int = count("most tokens of a row, special tokens included", 3)
        metrics: Sequence[str] | None = setting("names of the metrics; null: those that fit the problem", LIST, True)
        best_metric: str | None = text(
            'the metric, or "loss", that chooses the best checkpoint; null: the first metric', null=True
        )

    settings: Settings
    head: str
    """Key of the table of model heads, `models.load.HEADS`."""
    problem: str
    """What is predicted: a key of the metrics that fit, see `scores.allowed`."""
    generates = False
    """True: a prediction needs the model itself, not the outputs of one forward pass."""

    def __init__(self, settings: Settings):
        super().__init__(settings)
        self.name = settings.name
        self.metric_names = tuple(settings.metrics or self.default_metrics())
        self.best_metric = settings.best_metric or self.metric_names[0]
        if self.best_metric not in {*self.metric_names, "loss"}:
            allowed = ", ".join(self.metric_names)
            raise settings.error("best_metric", f"allowed are loss and this task's metrics, {allowed}")
        scores.check(self.metric_names, self.problem)
        self.tokenizer: Any = None
        self.calibration = multi_label.Calibration()

    # what a kind of task gives --------------------------------------------------------------------------------------

    @abstractmethod
    def read(self) -> Splits:
        """Reads and divides the data."""

    def use(self, tokenizer) -> None:
        """Takes the tokenizer (again, where a method changes it); what was encoded before is dropped.

        Raises:
            UserError: it does not allow rows of `max_length`.
        """
        if self.settings.max_length > tokenizer.model_max_length:
            raise self.settings.error("max_length", f"the model's tokenizer allows {tokenizer.model_max_length}")
        self.tokenizer = tokenizer
        self._encoded = {}

    @abstractmethod
    def loss(self, outputs, batch: Batch) -> Tensor:
        """Returns the mean loss of a batch, float32, a scalar."""

    def row_losses(self, outputs, batch: Batch) -> Tensor:
        """Returns the loss of each row, (rows,), float32, which no other row of the batch has a part in.

        Of tokens it is their sum, as a row's share in the loss of a whole set is.
        """
        raise NotImplementedError

    @abstractmethod
    def predict(self, outputs, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns (predictions, targets), as the metrics take them."""

    def generate(self, net, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns (predictions, targets) of a task that `generates`."""
        raise NotImplementedError

    def scored(self, net, outputs, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns (predictions, targets) of whatever kind of task."""
        return self.generate(net, batch) if self.generates else self.predict(outputs, batch)

    def num_loss_terms(self, batch: Batch) -> int:
        """Returns how many equal parts the loss of a batch is a mean over: rows, unless a subclass counts tokens."""
        return len(batch["labels"])

    def examples(self) -> dict[str, list[dict]]:
        """Returns what was generated last, by split; nothing where the task does not generate."""
        return {}

    def beside_model(self, config) -> dict[str, str]:
        """Returns path -> content of further files of the delivered folder, for a model with this configuration."""
        return {}

    def default_metrics(self) -> tuple[str, ...]:
        """Returns the metrics of a task that names none."""
        return DEFAULT_METRICS[self.problem]

    def enlarge(self, grow: Callable[[Rows], tuple[Rows, dict]]) -> None:
        """Gives the training split more rows, and no other split.

        A new row whose texts stand in another split is left out: the splits share no text, and go on sharing none.

        Args:
            grow: makes of the training rows more of them and an account of how, for `describe`.
        """
        splits = self.splits
        more, account = grow(splits.train)
        elsewhere = {texts for name, rows in splits.named().items() if name != "train" for texts in rows.texts()}
        elsewhere -= set(splits.train.texts())  # what is there already is not new
        kept = [i for i, texts in enumerate(more.texts()) if texts not in elsewhere]
        account = {**account, "rows_after": len(kept), "left_out": len(more) - len(kept)}
        train = more.take(kept) if len(kept) < len(more) else more
        self.splits = replace(splits, train=train, notes={**splits.notes, "augmented": account})
        self._encoded.pop("train", None)

    # labels and metrics ---------------------------------------------------------------------------------------------

    @cached_property
    def splits(self) -> Splits:
        """The rows, read on first use; training rows are already the `rows` that were asked for."""
        splits = self.read()
        for split, rows in splits.named().items():
            if not len(rows):
                raise UserError(f"task {self.name}: the {split} split is empty ({splits.source}; {splits.how})")
        scores.check(self.metric_names, self.problem, None if splits.labels is None else len(splits.labels))
        return splits

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Names of the classes in the order of their ids; None: a regression."""
        return self.splits.labels

    @property
    def num_labels(self) -> int:
        """How many numbers the model's head gives."""
        return 1 if self.labels is None else len(self.labels)

    @property
    def has_new_head(self) -> bool:
        """Whether the head's weights are new with the task."""
        return self.head in NEW_HEADS

    @property
    def positive(self) -> int:
        """The number of the class that F1, precision and recall are of, where there are two."""
        return 1

    @property
    def problem_type(self) -> str | None:
        """What the delivered configuration says, so that a pipeline applies the right link; None: it is clear."""
        return "multi_label_classification" if self.problem == "multi_label" else None

    @property
    def direction(self) -> str:
        """Returns "max" or "min": where the better values of `best_metric` are."""
        return scores.direction(self.best_metric)

    def metrics(self, split: str) -> MetricCollection:
        """Returns fresh metrics by their plain names, over a whole set.

        Args:
            split: "val" or "test": what is fitted, such as a temperature, is fitted on validation and serves the test.
        """
        return scores.collection(
            self.metric_names, self.problem, self.num_labels, split, self.calibration, self.positive
        )

    def metrics_to_log(self, loss: Tensor) -> dict[str, Tensor]:
        """Returns figures of a training step by their full names, from the task's loss."""
        return {}

    def training_texts(self) -> list[str]:
        """Returns the texts of the training rows, which a vocabulary may be built from."""
        return self.splits.texts("train")

    def inputs(self, batch: Batch) -> Batch:
        """Returns what the model takes of a batch: all but the labels."""
        return {name: value for name, value in batch.items() if name != "labels"}

    # what is stated -------------------------------------------------------------------------------------------------

    def fingerprint(self) -> str:
        """Returns a sha256 of the data after reading and dividing; needs no tokenizer."""
        return self.splits.fingerprint()

    def describe(self) -> dict:
        """Returns source, rows, how the splits were made, truncated rows (None before they are encoded), an account."""
        splits = self.splits
        of_one_class = self.problem == "classification" and scores.of_one_class(self.metric_names)
        return {
            "source": splits.source,
            "rows": {split: len(rows) for split, rows in splits.named().items()},
            "rows_asked": self.settings.rows,
            "splits": splits.how,
            "truncated": {split: data.truncated for split, data in self._encoded.items()} or None,
            "account": account(splits, self._encoded),
            **({"positive": splits.labels[self.positive]} if splits.labels and of_one_class else {}),
            **splits.notes,
        }
