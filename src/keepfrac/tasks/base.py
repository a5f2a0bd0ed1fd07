"""Task: what a run learns and is judged by. Nothing here is about texts: encoding and loss are the subclasses'."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchmetrics import MetricCollection

from keepfrac.errors import UserError
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

    Args:
        name: the task's name in results.
        rows: how many training rows to take, stratified, the same for every seed; None: all.
        metrics: names of the metrics; None: those that fit the problem.
        best_metric: the metric, or "loss", that chooses the best checkpoint; None: the first metric.
        batch_size: rows of one process in a training batch, >= 1.
        eval_batch_size: most rows of one process in an evaluation batch, >= 1.
        seed: of the order of training batches; splits and subsets never depend on it.
        num_workers: processes that prepare batches, >= 0.
    """

    head: str
    """Key of the table of model heads: "sequence_classification", "masked_lm", "causal_lm"."""
    problem: str
    problem_type: str | None = None
    """What the delivered configuration says, so that a pipeline applies the right link; None: it is clear."""
    generates = False
    """True: a prediction needs the model itself, not the outputs of one forward pass."""

    def __init__(
        self,
        *,
        name: str,
        rows: int | None,
        metrics: Sequence[str] | None,
        best_metric: str | None,
        batch_size: int,
        eval_batch_size: int,
        seed: int,
        num_workers: int,
    ):
        super().__init__()
        for key, value in {"batch_size": batch_size, "eval_batch_size": eval_batch_size}.items():
            if value < 1:
                raise UserError(f"{key}={value}: allowed are whole numbers from 1")
        self.name = name
        self.rows = rows
        self.metric_names = tuple(metrics) if metrics else self.default_metrics()
        self.best_metric = best_metric or self.metric_names[0]
        if self.best_metric not in {*self.metric_names, "loss"}:
            raise UserError(
                f"task.best_metric={best_metric}: allowed are loss and this task's metrics, "
                + ", ".join(self.metric_names)
            )
        scores.check(self.metric_names, self.problem)
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.seed, self.num_workers = seed, num_workers
        self._encoded: dict[str, Encoded] = {}
        self._batches: TrainingBatches | None = None
        self._start = (0, 0)
        self._as_test = False

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

    @abstractmethod
    def use(self, tokenizer) -> None:
        """Takes the tokenizer (again, where a method changes it); what was encoded before is dropped."""

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
    def direction(self) -> str:
        """Returns "max" or "min": where the better values of `best_metric` are."""
        return scores.direction(self.best_metric)

    def metrics(self) -> MetricCollection:
        """Returns fresh metrics by their plain names, over a whole set."""
        return scores.collection(self.metric_names, self.problem, self.num_labels, self._is_tested)

    def _is_tested(self) -> bool:
        return self._as_test or (self.trainer is not None and self.trainer.testing)

    @contextmanager
    def tested(self) -> Iterator[None]:
        """Inside the block what is scored is a test set, from which no score fits anything."""
        self._as_test = True
        try:
            yield
        finally:
            self._as_test = False

    def watched(self, loss: Tensor) -> dict[str, Tensor]:
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
        """Returns source, rows, how the splits were made, and truncated rows (None before they are encoded)."""
        splits = self.splits
        return {
            "source": splits.source,
            "rows": {split: len(rows) for split, rows in splits.named().items()},
            "rows_asked": self.rows,
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
        self._batches = TrainingBatches(data.lengths, self.batch_size, self.seed, *self._share())
        self._batches.start_at(*self._start)
        return self._loader(data, self._batches, self.num_workers)

    def training_batches(self) -> Iterator[Batch]:
        """Yields training batches for scores that need data: lazily, the same in every process."""
        data = self.encoded("train")
        yield from self._loader(data, TrainingBatches(data.lengths, self.batch_size, self.seed), 0)

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
        return self._loader(
            data, EvaluationBatches(data.lengths, self.eval_batch_size, *self._share()), self.num_workers
        )

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
            generator=torch.Generator().manual_seed(self.seed),  # else each iteration draws from the global one
        )
