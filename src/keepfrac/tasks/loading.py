"""From the rows of a task to batches: encoded once, in an order that depends on the seed, resumable at any batch."""

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, Protocol

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from keepfrac.settings import Settings as AnySettings
from keepfrac.settings import count, settings
from keepfrac.tasks.batches import EvaluationBatches, TrainingBatches
from keepfrac.tasks.rows import Rows, Splits

Batch = dict[str, Tensor]


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


class BatchedData(pl.LightningDataModule):
    """Batches of the encoded rows of each split.

    A subclass gives `splits`, `encode` and `collate`.
    """

    @settings
    class Settings(AnySettings):
        """Sizes and order of batches."""

        where: ClassVar[str] = "task"

        batch_size: int = count("rows of one process in a training batch")
        eval_batch_size: int = count("most rows of one process in an evaluation batch")
        seed: int = count("of the order of training batches; splits and subsets never depend on it", 0)
        num_workers: int = count("processes that prepare batches", 0)

    settings: Settings

    def __init__(self, settings: Settings):
        super().__init__()
        self.settings, self.batch_size = settings, settings.batch_size
        self._encoded: dict[str, Encoded] = {}
        self._batches: TrainingBatches | None = None
        self._start = (0, 0)

    @property
    @abstractmethod
    def splits(self) -> Splits:
        """The rows."""

    @abstractmethod
    def encode(self, rows: Rows) -> Encoded:
        """Brings rows into the form that the model takes."""

    @abstractmethod
    def collate(self, items: list) -> Batch:
        """Makes a batch of encoded rows."""

    @staticmethod
    def to_device(batch: Batch, device: torch.device) -> Batch:
        """Returns a batch on a device."""
        return {name: tensor.to(device) for name, tensor in batch.items()}

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
        """Makes training continue at this batch of this epoch, in the order of an uninterrupted run."""
        self._start = (epoch, batch)
        if self._batches is not None:
            self._batches.start_at(epoch, batch)

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the next iteration over training data."""
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
