"""Sentences with some of their words replaced, and the rows that they make."""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from keepfrac.augmentation.candidates import WordCandidates
from keepfrac.tasks.rows import TEXTS, Rows


def variants(
    text: str, words: Sequence[WordCandidates], times: int, p: float, random: np.random.Generator
) -> list[str]:
    """Returns up to `times` other sentences: draws that equal the text or an earlier draw are left out.

    Args:
        text: the sentence.
        words: its words, in order, and what may stand in their places.
        times: how many are drawn.
        p: probability of each word to be replaced, by one of its candidates, all alike.
        random: gives the draws.
    """
    replaceable = [word for word in words if word.words]
    replaced = random.random((times, len(replaceable))) < p
    picks = random.random((times, len(replaceable)))
    drawn = [
        _with(
            text,
            [
                (word, word.words[int(pick * len(word.words))])
                for word, pick, yes in zip(replaceable, which, flags, strict=True)
                if yes
            ],
        )
        for flags, which in zip(replaced.tolist(), picks.tolist(), strict=True)
    ]
    return [one for one in dict.fromkeys(drawn) if one != text]


def _with(text: str, replacements: Sequence[tuple[WordCandidates, str]]) -> str:
    """Returns the text with words in their new places; all else stays, character for character."""
    parts, end = [], 0
    for word, new in replacements:
        capital = text[word.start].isupper()
        parts += [text[end : word.start], new[0].upper() + new[1:] if capital else new]
        end = word.end
    return "".join([*parts, text[end:]])


def more_rows(
    rows: Rows, candidates_of: Callable[[str], Sequence[WordCandidates]], times: int, p: float, seed: int
) -> Rows:
    """Returns the rows, each followed by its variants: of the first sentence, then of the second, the other as it is.

    What is drawn depends on the seed and on a row's own texts, not on its index or on the rows around it.

    Args:
        rows: with a column `text` and perhaps `text_pair`; all other columns are copied.
        candidates_of: gives the candidates of a sentence.
        times: draws of each sentence.
        p: probability of each word to be replaced.
        seed: of the draws.
    """
    columns = [column for column in TEXTS if column in rows]
    origin: list[int] = []
    texts: dict[str, list[str]] = {column: [] for column in columns}
    for i, own in enumerate(zip(*(rows[column] for column in columns), strict=True)):
        random = np.random.default_rng([seed, *_numbers(own)])
        made = [own]
        for index, text in enumerate(own):
            others = variants(text, candidates_of(text), times, p, random)
            made += [(*own[:index], other, *own[index + 1 :]) for other in others]
        origin += [i] * len(made)
        for column, values in zip(columns, zip(*made, strict=True), strict=True):
            texts[column] += values
    return Rows({**rows.take(origin).columns, **texts})


def _numbers(texts: Sequence[str]) -> list[int]:
    """Returns 128 bits that depend on the texts alone."""
    digest = hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).digest()
    return np.frombuffer(digest[:16], dtype="<u4").tolist()
