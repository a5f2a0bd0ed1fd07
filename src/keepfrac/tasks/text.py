"""TextTask: a class, a number or any number of labels for one text or two."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss

from keepfrac.errors import UserError
from keepfrac.tasks.base import Batch, Task
from keepfrac.tasks.loading import Encoded
from keepfrac.tasks.rows import Rows
from keepfrac.tasks.tokens import TokenRows, Tokens, cached_tokens, tokenizer_digest


@dataclass(frozen=True)
class LabelledTokens(TokenRows):
    """Tokens and labels of rows.

    Args:
        labels: class numbers, scores or lists of class numbers.
    """

    labels: list

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray | None, int | float | list[int]]:
        return *self.tokens.row(index), self.labels[index]


class TextTask(Task):
    """Classification or regression of texts.

    A batch holds input_ids, attention_mask and, where the tokenizer knows segments, token_type_ids, int64
    (batch, longest of the batch), and labels: int64, or float32 for a regression, (batch,); for several labels 0 and 1
    in float32, (batch, labels).

    `problem` is one of "classification", "regression", "multi_label".
    """

    head = "sequence_classification"
    needs_offsets = False
    """Whether it has to know which characters of a text a token stands for."""
    _digest = ""

    def use(self, tokenizer) -> None:
        super().use(tokenizer)
        if self.needs_offsets and not tokenizer.is_fast:
            raise UserError(
                f"task {self.name}: {type(tokenizer).__name__} does not say which characters a token stands for;"
                " give a model with a fast tokenizer (tokenizer.json)"
            )
        self._digest = tokenizer_digest(tokenizer)

    def tokens(self, rows: Rows) -> Tokens:
        """Returns the tokens of `rows`."""
        assert self.tokenizer is not None, "use(tokenizer) comes first"
        return cached_tokens(self.tokenizer, self._digest, rows, self.settings.max_length)

    def encode(self, rows: Rows) -> Encoded:
        """Returns tokens and labels of `rows`."""
        return LabelledTokens(self.tokens(rows), rows["label"])

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
        pad = self.tokenizer.pad_token_id or 0  # the model's loading may have named it
        batch = {"input_ids": torch.full(shape, pad), "attention_mask": torch.zeros(shape, dtype=torch.long)}
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
