"""Words with the nearest vectors: from a GloVe file, or from the input embeddings of a model."""

import functools
import hashlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from keepfrac.augmentation.words import check_tokenizer, is_word
from keepfrac.errors import DataMissing, UserError

Vector = np.ndarray


class Neighbours:
    """A table of words and their vectors, asked for the nearest by cosine.

    Args:
        words: those that can be an answer.
        vectors: of these words, (words, width) float32.
        vector_of: gives the vector of a word that is asked for, in the same space; None: it has none.
    """

    def __init__(self, words: list[str], vectors: np.ndarray, vector_of: Callable[[str], Vector | None]):
        self.words, self.vector_of = words, vector_of
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        self.vectors = np.ascontiguousarray(vectors / np.where(norms > 0, norms, 1), dtype=np.float32)
        # one word at a time: in a batch of others its products would be rounded differently
        self.nearest = functools.cache(self._nearest)

    def _nearest(self, word: str, count: int) -> tuple[str, ...]:
        """Returns the `count` words nearest to `word`, itself left out; none where it has no vector."""
        vector = self.vector_of(word)
        if vector is None or not np.any(vector):
            return ()
        likeness = self.vectors @ np.asarray(vector, dtype=np.float32)
        most = min(len(self.words), count + 4)  # the word itself is among them in up to three spellings
        best = np.argpartition(-likeness, most - 1)[:most]
        best = best[np.lexsort((best, -likeness[best]))]
        others = (self.words[i] for i in best if self.words[i].lower() != word.lower())
        return tuple(itertools.islice(others, count))


def from_embeddings(weight: np.ndarray, tokenizer) -> Neighbours:
    """Returns the whole words of a vocabulary by their input embeddings; a word of pieces is the mean of theirs.

    Args:
        weight: the embeddings, (vocabulary, width) float32.
        tokenizer: a WordPiece tokenizer.
    """
    check_tokenizer(tokenizer)
    known = sorted((number, word) for word, number in tokenizer.get_vocab().items() if is_word(word))

    def vector_of(word: str) -> Vector:
        return weight[tokenizer(word, add_special_tokens=False)["input_ids"]].mean(0)

    return Neighbours([word for _, word in known], weight[[number for number, _ in known]], vector_of)


def from_glove(path: str, most: int) -> Neighbours:
    """Returns the words of letters among the first `most` lines of a GloVe file: a word and its numbers a line.

    Raises:
        DataMissing: there is no such file.
        UserError: a line is not what it must be; the message has its number and the reason.
    """
    words, vectors, width = [], [], 0
    for number, line in enumerate(glove_lines(path, most), start=1):
        word, vector = _parse(line, width, f"augment.glove={path}, line {number}")
        width = len(vector)
        if is_word(word):
            words.append(word)
            vectors.append(vector)
    if not words:
        raise UserError(f"augment.glove={path}: no word of letters in its first {most} lines")
    table = np.stack(vectors)
    rows = {word: row for row, word in reversed(list(enumerate(words)))}  # of doubles the first

    def vector_of(word: str) -> Vector | None:
        row = rows.get(word, rows.get(word.lower()))
        return None if row is None else table[row]

    return Neighbours(words, table, vector_of)


def glove_lines(path: str, most: int) -> Iterator[bytes]:
    """Yields the first `most` lines of a GloVe file, without their ends.

    Raises:
        DataMissing: there is no such file.
    """
    try:
        with Path(path).expanduser().open("rb") as file:
            for line in itertools.islice(file, most):
                yield line.rstrip(b"\r\n")
    except OSError as error:
        raise DataMissing(
            f"augment.glove={path}: cannot be read ({error.strerror}); give a GloVe text file"
            " (a word and its numbers a line), or augment.glove=null for the model's input embeddings"
        ) from error


@functools.cache
def glove_digest(path: str, most: int) -> str:
    """Returns a hash of what is read of a GloVe file, of any name and place."""
    digest = hashlib.sha256()
    for line in glove_lines(path, most):
        digest.update(line + b"\n")
    return digest.hexdigest()[:16]


def _parse(line: bytes, width: int, where: str) -> tuple[str, Vector]:
    """Returns the word and the vector of a line; `width` numbers are expected, 0: as many as there are."""
    try:
        fields = line.decode().rstrip(" ").split(" ")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 ({error.reason})") from error
    numbers = fields[-width:] if width else fields[1:]
    word = " ".join(fields[: len(fields) - len(numbers)])  # some words of the big files hold spaces
    if not word or len(numbers) < 2:
        found = f"{len(fields)} fields" if line.strip() else "an empty line"
        raise UserError(f"{where}: {found}, where a word and {width or 'its'} numbers must stand")
    try:
        vector = np.array(numbers, dtype=np.float32)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error
    if not np.isfinite(vector).all():
        raise UserError(f"{where}: a number of {word} is not finite")
    return word, vector
