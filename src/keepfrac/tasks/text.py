"""TextTask: a class, a number or any number of labels for one text or two."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss

from keepfrac.errors import UserError
from keepfrac.tasks.base import Batch, Task
from keepfrac.tasks.rows import Rows
from keepfrac.tasks.tokens import Tokens, cached_tokens, tokenizer_digest


@dataclass(frozen=True)
class LabelledTokens:
    """Tokens and labels of rows.

    Args:
        tokens: of all rows.
        labels: class numbers, scores or lists of class numbers.
    """

    tokens: Tokens
    labels: list

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, (rows,)."""
        return self.tokens.lengths

    @property
    def truncated(self) -> int:
        """How many rows were cut."""
        return self.tokens.truncated

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray | None, int | float | list[int]]:
        return *self.tokens.row(index), self.labels[index]


class TextTask(Task):
    """Classification or regression of texts.

    A batch holds input_ids, attention_mask and, where the tokenizer knows segments, token_type_ids, int64
    (batch, longest of the batch), and labels: int64, or float32 for a regression, (batch,); for several labels 0 and 1
    in float32, (batch, labels).

    Args:
        name: the task's name in results.
        problem: one of `problems`.
        rows: how many training rows to take; None: all.
        max_length: most tokens of a row, special tokens included, >= 3.
        metrics: names of the metrics; None: those that fit the problem.
        best_metric: the metric, or "loss", that chooses the best checkpoint.
        batch_size: rows of one process in a training batch.
        eval_batch_size: most rows of one process in an evaluation batch.
        seed: of the order of training batches.
        num_workers: processes that prepare batches.
    """

    head = "sequence_classification"
    problems: tuple[str, ...] = ("classification", "regression", "multi_label")

    def __init__(
        self,
        *,
        name: str,
        problem: str,
        rows: int | None,
        max_length: int,
        metrics: Sequence[str] | None,
        best_metric: str | None,
        batch_size: int,
        eval_batch_size: int,
        seed: int,
        num_workers: int,
    ):
        if problem not in self.problems:
            raise UserError(f"task.problem={problem}: allowed are {' and '.join(self.problems)}")
        if max_length < 3:
            raise UserError(f"task.max_length={max_length}: allowed are whole numbers from 3")
        self.problem = problem
        self.problem_type = "multi_label_classification" if problem == "multi_label" else None
        self.max_length = max_length
        self.tokenizer = None
        self._digest, self._pad = "", 0
        super().__init__(
            name=name,
            rows=rows,
            metrics=metrics,
            best_metric=best_metric,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            seed=seed,
            num_workers=num_workers,
        )

    def use(self, tokenizer) -> None:
        """Takes the tokenizer; a `max_length` beyond what it allows is an error."""
        if self.max_length > tokenizer.model_max_length:
            raise UserError(
                f"task.max_length={self.max_length}: the model's tokenizer allows {tokenizer.model_max_length}"
            )
        self.tokenizer = tokenizer
        self._digest = tokenizer_digest(tokenizer)
        self._pad = tokenizer.pad_token_id or 0
        self._encoded = {}

    def encode(self, rows: Rows) -> LabelledTokens:
        """Returns tokens and labels of `rows`."""
        assert self.tokenizer is not None, "use(tokenizer) comes first"
        return LabelledTokens(cached_tokens(self.tokenizer, self._digest, rows, self.max_length), rows["label"])

    def collate(self, items: list) -> Batch:
        """Pads rows to the longest of them."""
        return {
            **self.padded([(ids, types) for ids, types, _ in items]),
            "labels": self._labels([label for _, _, label in items]),
        }

    def padded(self, items: list[tuple[np.ndarray, np.ndarray | None]]) -> Batch:
        """Returns all of a batch but the labels, padded to the longest row."""
        longest = max(len(ids) for ids, _ in items)
        shape = (len(items), longest)
        batch = {"input_ids": torch.full(shape, self._pad), "attention_mask": torch.zeros(shape, dtype=torch.long)}
        if items[0][1] is not None:
            batch["token_type_ids"] = torch.zeros(shape, dtype=torch.long)
        for i, (ids, types) in enumerate(items):
            batch["input_ids"][i, : len(ids)] = torch.from_numpy(ids.astype(np.int64))
            batch["attention_mask"][i, : len(ids)] = 1
            if types is not None:
                batch["token_type_ids"][i, : len(ids)] = torch.from_numpy(types.astype(np.int64))
        return batch

    def _labels(self, labels: list) -> Tensor:
        if self.problem == "multi_label":
            truth = torch.zeros(len(labels), self.num_labels)
            for row, true in enumerate(labels):
                truth[row, true] = 1
            return truth
        return torch.tensor(labels, dtype=torch.float32 if self.problem == "regression" else torch.long)

    def loss(self, outputs, batch: Batch) -> Tensor:
        """Returns cross entropy (of each label by itself where there are several), or the mean squared error."""
        logits = outputs.logits.float()
        if self.problem == "regression":
            return mse_loss(logits.squeeze(-1), batch["labels"])
        if self.problem == "multi_label":
            return binary_cross_entropy_with_logits(logits, batch["labels"])
        return cross_entropy(logits, batch["labels"])

    def row_losses(self, outputs, batch: Batch) -> Tensor:
        """Returns the loss of each row, (batch,); of several labels it is their mean."""
        logits = outputs.logits.float()
        if self.problem == "regression":
            return mse_loss(logits.squeeze(-1), batch["labels"], reduction="none")
        if self.problem == "multi_label":
            return binary_cross_entropy_with_logits(logits, batch["labels"], reduction="none").mean(1)
        return cross_entropy(logits, batch["labels"], reduction="none")

    def predict(self, outputs, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns predicted and true classes or scores, (batch,); of several labels logits and truth."""
        logits = outputs.logits.float()
        if self.problem == "multi_label":
            return logits, batch["labels"]
        return logits.squeeze(-1) if self.problem == "regression" else logits.argmax(-1), batch["labels"]
