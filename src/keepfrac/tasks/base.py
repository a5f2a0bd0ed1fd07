"""Task: what a run learns and is judged by. How rows are encoded and what the loss is, is the subclasses'."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar, Protocol

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchmetrics import MetricCollection

from keepfrac.errors import UserError
from keepfrac.settings import Kind, count, setting, settings, text
from keepfrac.settings import Settings as AnySettings
from keepfrac.tasks.batches import EvaluationBatches, TrainingBatches
from keepfrac.tasks.metrics import multi_label, scores
from keepfrac.tasks.rows import Rows, Splits

Batch = dict[str, Tensor]
DEFAULT_METRICS = {
    "classification": ("accuracy",),
    "regression": ("pearson_and_spearman", "pearson", "spearman"),
    "multi_label": multi_label.NAMES,
    "masked_lm": tuple(scores.MASKED),
}
LIST = Kind(
    lambda value: isinstance(value, list | tuple) and all(isinstance(one, str | int | float) for one in value),
    "a list of words or numbers",
)


def token_sums(values: Tensor, places: Tensor) -> Tensor:
    """Returns the sum over each row of `values` (tokens,), which stand at the true `places` (rows, length); (rows,)."""
    rows = places.nonzero()[:, 0]
    return values.new_zeros(len(places)).index_add(0, rows, values)


class Encoded(Protocol):
    """Rows as a model takes them: indexable, with the length and the number of truncated rows."""

    @property
    def truncated(self) -> int:
        """How many rows were cut."""

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


class Task(pl.LightningDataModule):
    """Data, labels, metrics, loss and prediction of one task.

    A subclass gives `head`, `problem`, `read`, `encode`, `collate`, `loss` and `predict`.

    Raises:
        UserError: a metric that does not fit the problem.
    """

    @settings
    class Settings(AnySettings):
        """What every task has."""

        where: ClassVar[str] = "task"

        name: str = text("the task's name in results")
        rows: int | None = count("training rows, stratified, the same for every seed; null: all", null=True)
        max_length: int = count("most tokens of a row, special tokens included", 3)
        metrics: Sequence[str] | None = setting("names of the metrics; null: those that fit the problem", LIST, True)
        best_metric: str | None = text(
            'the metric, or "loss", that chooses the best checkpoint; null: the first metric', null=True
        )
        batch_size: int = count("rows of one process in a training batch")
        eval_batch_size: int = count("most rows of one process in an evaluation batch")
        seed: int = count("of the order of training batches; splits and subsets never depend on it", 0)
        num_workers: int = count("processes that prepare batches", 0)

    settings: Settings
    head: str
    """Key of the table of model heads: "sequence_classification", "masked_lm", "causal_lm"."""
    problem: str
    """What is predicted: a key of the metrics that fit, see `scores.allowed`."""
    generates = False
    """True: a prediction needs the model itself, not the outputs of one forward pass."""

    def __init__(self, settings: Settings):
        super().__init__()
        self.settings, self.name, self.batch_size = settings, settings.name, settings.batch_size
        self.metric_names = tuple(settings.metrics or self.default_metrics())
        self.best_metric = settings.best_metric or self.metric_names[0]
        if self.best_metric not in {*self.metric_names, "loss"}:
            allowed = ", ".join(self.metric_names)
            raise settings.error("best_metric", f"allowed are loss and this task's metrics, {allowed}")
        scores.check(self.metric_names, self.problem)
        self.tokenizer: Any = None
        self.calibration = multi_label.Calibration()
        self._encoded: dict[str, Encoded] = {}
        self._batches: TrainingBatches | None = None
        self._start = (0, 0)

    # what a kind of task gives --------------------------------------------------------------------------------------

    @abstractmethod
    def read(self) -> Splits:
        """Reads and divides the data."""

    @abstractmethod
    def encode(self, rows: Rows) -> Encoded:
        """Brings rows into the form that the model takes."""

    @abstractmethod
    def collate(self, items: list) -> Batch:
        """Makes a batch of encoded rows."""

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

    def weight(self, batch: Batch, targets: Tensor) -> int:
        """Returns how many equal parts the loss of a batch is a mean over."""
        return len(targets)

    def examples(self) -> dict[str, list[dict]]:
        """Returns what was generated last, by split; nothing where the task does not generate."""
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
        return splits

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Names of the classes in the order of their numbers; None: a regression."""
        return self.splits.labels

    @property
    def num_labels(self) -> int:
        """How many numbers the model's head gives."""
        return 1 if self.labels is None else len(self.labels)

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
        return scores.collection(self.metric_names, self.problem, self.num_labels, split, self.calibration)

    def metrics_to_log(self, loss: Tensor) -> dict[str, Tensor]:
        """Returns figures of a training step by their full names, from the task's loss."""
        return {}

    def training_texts(self) -> list[str]:
        """Returns the texts of the training rows, which a vocabulary may be built from."""
        return self.splits.texts("train")

    def inputs(self, batch: Batch) -> Batch:
        """Returns what the model takes of a batch: all but the labels."""
        return {name: value for name, value in batch.items() if name != "labels"}

    def to_device(self, batch: Batch, device: torch.device) -> Batch:
        """Returns a batch on a device."""
        return {name: tensor.to(device) for name, tensor in batch.items()}

    # what is stated -------------------------------------------------------------------------------------------------

    def fingerprint(self) -> str:
        """Returns a sha256 of the data after reading and dividing; needs no tokenizer."""
        return self.splits.fingerprint()

    def describe(self) -> dict:
        """Returns source, rows, how the splits were made, and truncated rows (None before they are encoded)."""
        splits = self.splits
        return {
            "source": splits.source,
            "rows": {split: len(rows) for split, rows in splits.named().items()},
            "rows_asked": self.settings.rows,
            "splits": splits.how,
            "truncated": {split: data.truncated for split, data in self._encoded.items()} or None,
            **splits.notes,
        }

    # batches --------------------------------------------------------------------------------------------------------

    def encoded(self, split: str) -> Encoded:
        """Returns the encoded rows of "train", "val", "test" or an extra test set."""
        if split not in self._encoded:
            self._encoded[split] = self.encode(self.splits.named()[split])
        return self._encoded[split]

    def prepare_data(self) -> None:
        """Encodes everything in the first process of a machine, so that the others find it done."""
        self.setup()

    def setup(self, stage: str | None = None) -> None:
        """Reads and encodes everything."""
        for split in self.splits.named():
            self.encoded(split)

    def start_at(self, epoch: int, batch: int) -> None:
        """Training goes on at this batch of this epoch, in the order of a run that was never interrupted."""
        self._start = (epoch, batch)
        if self._batches is not None:
            self._batches.start_at(epoch, batch)

    def set_epoch(self, epoch: int) -> None:
        """The next iteration over training data is that of `epoch`."""
        if epoch != self._start[0]:
            self._start = (epoch, 0)
        if self._batches is not None:
            self._batches.set_epoch(epoch)

    def train_dataloader(self) -> DataLoader:
        """Returns the training batches, from the position given by `start_at`."""
        data = self.encoded("train")
        self._batches = TrainingBatches(data.lengths, self.batch_size, self.settings.seed, *self._share())
        self._batches.start_at(*self._start)
        return self._loader(data, self._batches, self.settings.num_workers)

    def training_batches(self) -> Iterator[Batch]:
        """Yields training batches for scores that need data: lazily, the same in every process."""
        data = self.encoded("train")
        yield from self._loader(data, TrainingBatches(data.lengths, self.batch_size, self.settings.seed), 0)

    def batches_per_epoch(self, world: int) -> int:
        """Returns how many training batches each of `world` processes takes in an epoch."""
        return max(1, len(self.splits.train) // (self.batch_size * world))

    def probe_batch(self, rows: int) -> Batch:
        """Returns the first rows of the validation split as one batch: what costs are measured on."""
        data = self.encoded("val")
        return self.collate([data[i] for i in range(min(rows, len(data)))])

    def val_dataloader(self) -> DataLoader:
        """Returns the validation batches."""
        return self._evaluation("val")

    def test_dataloader(self) -> DataLoader:
        """Returns the test batches."""
        return self._evaluation("test")

    def extra_dataloaders(self) -> dict[str, DataLoader]:
        """Returns further labelled test sets by name, such as MNLI's mismatched one."""
        return {split: self._evaluation(split) for split in self.splits.extra}

    def _evaluation(self, split: str) -> DataLoader:
        data = self.encoded(split)
        batches = EvaluationBatches(data.lengths, self.settings.eval_batch_size, *self._share())
        return self._loader(data, batches, self.settings.num_workers)

    def _share(self) -> tuple[int, int]:
        """Returns this process's rank and how many there are."""
        trainer = self.trainer
        return (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)

    def _loader(self, data: Encoded, batches, num_workers: int) -> DataLoader:
        dataset: Dataset = data  # type: ignore[assignment]
        return DataLoader(
            dataset,
            batch_sampler=batches,
            collate_fn=self.collate,
            num_workers=num_workers,
            multiprocessing_context="fork" if num_workers else None,  # jobs of a process pool cannot pickle theirs
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
            generator=torch.Generator().manual_seed(
                self.settings.seed
            ),  # else each iteration draws from the global one
        )
