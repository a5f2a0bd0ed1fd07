"""A meaning representation (MR) and a reference as the tokens of a causal language model: prompt, text, end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from keepfrac.errors import UserError
from keepfrac.tasks.tokens import Tokens

CHUNK = 8_192


@dataclass(frozen=True)
class Written:
    """Tokens of MRs and of their references.

    Args:
        prompts: tokens of each prompt.
        texts: tokens of each text, its end token included.
        numbers: which MR a row is, for rows that are generated for; -1: a training row.
        truncated: how many rows were cut.
    """

    prompts: list[np.ndarray]
    texts: list[np.ndarray]
    numbers: list[int]
    truncated: int

    @property
    def tokens(self) -> Tokens:
        """All prompts and then all texts, each a row of its own."""
        parts = [*self.prompts, *self.texts]
        starts = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
        ids = np.concatenate(parts) if parts else np.zeros(0)
        return Tokens(ids.astype(np.int32), None, starts, self.truncated)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, (rows,)."""
        pairs = zip(self.prompts, self.texts, strict=True)
        return np.fromiter((len(p) + len(t) for p, t in pairs), dtype=np.int64, count=len(self.texts))

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, int]:
        return self.prompts[index], self.texts[index], self.numbers[index]


def end_token(tokenizer) -> int:
    """Returns the token that ends a text: the tokenizer's end of sequence, else its separator.

    Raises:
        UserError: it has neither.
    """
    for found in (tokenizer.eos_token_id, getattr(tokenizer, "sep_token_id", None)):
        if found is not None:
            return found
    raise UserError("this model's tokenizer has no token that ends a text: a generation task needs one (eos_token)")


def write(tokenizer, prompts: Sequence[str], texts: Sequence[str], prompt_length: int, text_length: int):
    """Returns (prompts, texts, truncated): token arrays, and how many rows were cut.

    A prompt carries what the tokenizer puts at the beginning, not what it puts at the end; one that is too long loses
    its beginning, for its end says that a text begins. A text that is too long loses its end, and the end token too.

    Args:
        tokenizer: of the model.
        prompts: one per row; equal ones are tokenised once.
        texts: one per row.
        prompt_length: most tokens of a prompt.
        text_length: most tokens of a text, the end token included.
    """
    end = end_token(tokenizer)
    first = list(dict.fromkeys(prompts))
    closing = {end, getattr(tokenizer, "sep_token_id", None)}
    stripped = {
        text: _without_closing(ids, closing) for text, ids in zip(first, _encoded(tokenizer, first, True), strict=True)
    }
    before = [stripped[text] for text in prompts]
    after = [[*ids, end] for ids in _encoded(tokenizer, [f" {text}" for text in texts], False)]
    pairs = zip(before, after, strict=True)
    truncated = sum(len(p) > prompt_length or len(t) > text_length for p, t in pairs)
    return (
        [np.asarray(ids[-prompt_length:], dtype=np.int64) for ids in before],
        [np.asarray(ids[:text_length], dtype=np.int64) for ids in after],
        truncated,
    )


def _encoded(tokenizer, texts: list[str], special: bool) -> list[list[int]]:
    return [
        ids
        for start in range(0, len(texts), CHUNK)
        for ids in tokenizer(texts[start : start + CHUNK], add_special_tokens=special, return_attention_mask=False)[
            "input_ids"
        ]
    ]


def _without_closing(ids: list[int], closing: set) -> list[int]:
    """Returns tokens without those that close a sequence."""
    end = len(ids)
    while end > 1 and ids[end - 1] in closing:
        end -= 1
    return ids[:end]
