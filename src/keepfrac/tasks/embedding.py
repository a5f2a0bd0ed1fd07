"""Texts as vectors: the base of tasks that compare two of them, and the files that sentence-transformers reads."""

import json
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from keepfrac.settings import choice, settings
from keepfrac.tasks.base import Batch
from keepfrac.tasks.rows import Rows
from keepfrac.tasks.text import TextTask
from keepfrac.tasks.tokens import Tokens, joined

MODULES = "sentence_transformers.models"


@dataclass(frozen=True)
class PairsOfTokens:
    """Tokens of two texts a row, each by itself, and what is known of the pair.

    Args:
        left: tokens of the first texts.
        right: tokens of the second texts.
        labels: a score, or the numbers of both texts, of each row.
    """

    left: Tokens
    right: Tokens
    labels: list

    @property
    def tokens(self) -> Tokens:
        """Tokens of all texts, the first ones before the second ones."""
        return joined(self.left, self.right)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of the longer text of each row, (rows,)."""
        return np.maximum(self.left.lengths, self.right.lengths)

    @property
    def truncated(self) -> int:
        """How many texts were cut."""
        return self.left.truncated + self.right.truncated

    def __len__(self) -> int:
        return len(self.left)

    def __getitem__(self, index: int) -> tuple:
        return self.left.row(index), self.right.row(index), self.labels[index]


class PairEmbeddings(TextTask):
    """Two texts a row, each made a vector by the encoder alone: its last hidden states, pooled, of length 1.

    A batch of B rows holds 2 B texts, the first ones before the second ones: input_ids, attention_mask and, where the
    tokenizer knows segments, token_type_ids, int64 (2 B, longest); and `labels` (B, ...).
    """

    @settings
    class Settings(TextTask.Settings):
        """How tokens become one vector."""

        pooling: str = choice("which hidden states make the vector: the mean of all, or the first", "mean", "cls")

    settings: Settings
    head = "embedding"

    def encode(self, rows: Rows) -> PairsOfTokens:
        """Returns the tokens of both texts of `rows`, and the labels."""
        left, right = (self.tokens(Rows({"text": rows[name]})) for name in ("text", "text_pair"))
        return PairsOfTokens(left, right, self.labels_of(rows))

    def labels_of(self, rows: Rows) -> list:
        """Returns what is known of each pair."""
        return rows["label"]

    def collate(self, items: list) -> Batch:
        """Pads all texts of a batch to the longest of them."""
        texts = [left for left, _, _ in items] + [right for _, right, _ in items]
        return {**self.padded(texts), "labels": torch.tensor([label for _, _, label in items])}

    def embedded(self, outputs, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns the vectors of the first and of the second texts, (B, width) each, float32, of length 1."""
        hidden = outputs.last_hidden_state.float()
        if self.settings.pooling == "cls":
            pooled = hidden[:, 0]
        else:
            there = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
            pooled = (hidden * there).sum(1) / there.sum(1)
        left, right = normalize(pooled, dim=-1).chunk(2)
        return left, right

    def beside_model(self, config) -> dict[str, str]:
        """Returns path -> content of the files that make the delivered folder one of sentence-transformers."""
        pooling = {
            "word_embedding_dimension": config.hidden_size,
            "pooling_mode_cls_token": self.settings.pooling == "cls",
            "pooling_mode_mean_tokens": self.settings.pooling == "mean",
        }
        kinds = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
        modules = [
            {"idx": number, "name": str(number), "path": path, "type": f"{MODULES}.{kind}"}
            for number, (path, kind) in enumerate(kinds)
        ]
        files = {
            "modules.json": modules,
            "1_Pooling/config.json": pooling,
            "sentence_bert_config.json": {"max_seq_length": self.settings.max_length, "do_lower_case": False},
        }
        return {path: json.dumps(content, indent=2) + "\n" for path, content in files.items()}
