"""Vectors by contrast: a text and what belongs to it are close, what belongs to the other texts of the batch is far.

With vectors a_i, p_i of the B pairs of a batch and a temperature t, the loss is the mean over i of

    -log( exp(a_i p_i / t) / sum_j exp(a_i p_j / t) )

(in-batch negatives: Henderson et al. 2017, section 4; InfoNCE). A pair j that shares a text with pair i is no negative
of it and is left out of the sum. With `dims` the loss is the mean over vectors cut to these lengths (Kusupati et al.
2022).
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize
from torchmetrics import MetricCollection

from keepfrac.settings import Kind, choice, number, setting, settings
from keepfrac.settings import text as text_field
from keepfrac.tasks.base import Batch
from keepfrac.tasks.data.files import OwnFiles, read_table
from keepfrac.tasks.data.glue import LAYOUTS
from keepfrac.tasks.embedding import PairEmbeddings
from keepfrac.tasks.glue import GlueTask
from keepfrac.tasks.metrics.retrieval import RetrievalScores
from keepfrac.tasks.rows import Rows, Splits, completed, subset

LENGTHS = Kind(
    lambda value: (
        isinstance(value, list | tuple) and bool(value) and all(isinstance(one, int) and one > 1 for one in value)
    ),
    "a list of lengths, such as [384,128,64]",
)


class Contrastive(PairEmbeddings):
    """Pairs that belong together; labels of a batch are the numbers of both texts in their split, int64, (B, 2)."""

    @settings
    class Settings(PairEmbeddings.Settings):
        """The loss."""

        temperature: float = number("what cosines are divided by", 0.001, 1)
        dims: Sequence[int] | None = setting("lengths that vectors can be cut to; null: the whole alone", LENGTHS, True)

        def check(self) -> None:
            super().check()
            if self.batch_size < 2:
                raise self.error(
                    "batch_size", "pairs of one process and one accumulated batch; two at least, for a contrast"
                )

    settings: Settings
    problem = "retrieval"

    def labels_of(self, rows: Rows) -> list:
        """Returns the numbers of both texts; equal texts have equal numbers."""
        numbers: dict[str, int] = {}
        pairs = zip(rows["text"], rows["text_pair"], strict=True)
        return [[numbers.setdefault(text, len(numbers)) for text in pair] for pair in pairs]

    def loss(self, outputs, batch: Batch) -> Tensor:
        return self.row_losses(outputs, batch).mean()

    def row_losses(self, outputs, batch: Batch) -> Tensor:
        """Returns the loss of each pair, (B,), in which the other pairs of the batch have a part: its negatives."""
        left, right = self.embedded(outputs, batch)
        wanted = torch.arange(len(left), device=left.device)
        masked = _sharing(batch["labels"])
        found = [
            cross_entropy(self._scores(left[:, :dim], right[:, :dim], masked), wanted, reduction="none")
            for dim in self._dims(left.shape[1])
        ]
        return torch.stack(found).mean(0)

    def _dims(self, width: int) -> Sequence[int]:
        dims = self.settings.dims or (width,)
        if max(dims) > width:
            raise self.settings.error("dims", f"the model's vectors are {width} long")
        return dims

    def _scores(self, left: Tensor, right: Tensor, masked: Tensor) -> Tensor:
        cosines = normalize(left, dim=-1) @ normalize(right, dim=-1).T
        return (cosines / self.settings.temperature).masked_fill(masked, -torch.inf)

    def predict(self, outputs, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns both vectors of each pair, (B, 2 width), and the numbers of its texts, (B, 2)."""
        return torch.cat(self.embedded(outputs, batch), dim=1), batch["labels"]

    def metrics(self, split: str) -> MetricCollection:
        return MetricCollection({"retrieval": RetrievalScores(self.metric_names)})


def _sharing(numbers: Tensor) -> Tensor:
    """Returns which pairs share a text with another one, (B, B) bool, False on the diagonal."""
    left, right = numbers[:, 0], numbers[:, 1]
    same = (left[:, None] == left) | (right[:, None] == right) | (left[:, None] == right) | (right[:, None] == left)
    return same & ~torch.eye(len(numbers), dtype=torch.bool, device=numbers.device)


class GlueContrastive(Contrastive, GlueTask):
    """Pairs of a GLUE task that have one label: a sentence and what it entails, two questions that ask the same."""

    @settings
    class Settings(Contrastive.Settings, GlueTask.Settings):
        """Those of both."""

        name: str = text_field("the task's name in results")
        corpus: str = choice("the GLUE task whose pairs they are", *LAYOUTS)
        belongs: str = text_field("the label of pairs that belong together")

        @property
        def layout_name(self) -> str:
            return self.corpus

    settings: Settings

    def read(self) -> Splits:
        """Reads the task, and leaves out the pairs with another label."""
        labels = self.layout.labels or ()
        if self.settings.belongs not in labels:
            raise self.settings.error(
                "belongs", f"allowed for {self.settings.corpus} are {', '.join(labels) or 'none'}"
            )
        whole = super().read()
        wanted = labels.index(self.settings.belongs)
        train, validation, test = (_of_label(rows, wanted) for rows in (whole.train, whole.validation, whole.test))
        extra = {name: _of_label(rows, wanted) for name, rows in whole.extra.items()}
        how = f"{whole.how}; of all, the pairs labelled {self.settings.belongs}"
        return replace(
            whole, train=subset(train, self.settings.rows, "text"), validation=validation, test=test, extra=extra,
            how=how, labels=None,
        )  # fmt: skip

    def chosen(self, train: Rows) -> Rows:
        """Returns all: `rows` counts pairs that belong together."""
        return train

    def problem_of(self) -> str:
        return self.problem


def _of_label(rows: Rows, wanted: int) -> Rows:
    kept = rows.take(np.flatnonzero(np.asarray(rows["label"]) == wanted))
    return Rows({name: kept[name] for name in ("text", "text_pair")})


class FileContrastive(Contrastive):
    """A user's own pairs."""

    @settings
    class Settings(Contrastive.Settings):
        """The files and their columns."""

        train_file: str | None = text_field("the training pairs (.csv, .tsv or .jsonl)", null=True)
        validation_file: str | None = text_field("what chooses the best checkpoint; null: cut from train", null=True)
        test_file: str | None = text_field("what is reported; null: cut from train", null=True)
        text: str = text_field("column of the first text, such as a question")
        text_pair: str = text_field("column of what belongs to it")

    settings: Settings

    def read(self) -> Splits:
        """Reads the files, and cuts from train what has no file."""
        own, files = self.settings, OwnFiles.needed(self.settings)
        columns = {"text": own.text, "text_pair": own.text_pair}
        rows = {split: Rows(read_table(path, columns).columns) for split, path in files.paths.items()}
        train, validation, test, how = completed(rows, files.names)
        return Splits(subset(train, own.rows, "text"), validation, test, files.source, how, labels=None)
