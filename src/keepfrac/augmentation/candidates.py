"""Words that may stand in the place of others: made once per content and settings, in chunks that outlive a kill.

An entry of the cache is a folder named by the sha256 of all that its content depends on. A chunk holds the candidates
of CHUNK sentences; it is written beside and then renamed, and made by one process at a time, so that jobs that start
together share the work. An entry may be deleted at any time.
"""

import contextlib
import io
import logging
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from keepfrac.errors import UserError
from keepfrac.storage.files import locked, replacing
from keepfrac.tensors.barrier import wait_for_all

log = logging.getLogger(__name__)

CHUNK = 256
KINDS = ("none", "masked_lm", "neighbours")
"""Where the candidates of a word come from."""


@dataclass(frozen=True)
class Choice:
    """One word of a sentence and what may stand in its place.

    Args:
        start: its first character.
        end: the character after its last.
        kind: one of KINDS.
        words: the candidates; empty: it stays.
    """

    start: int
    end: int
    kind: str
    words: tuple[str, ...]


Choices = list[list[Choice]]
"""Of each sentence its choices."""
Make = Callable[[Sequence[str]], Choices]


@dataclass(frozen=True)
class Store:
    """The chunks of one entry.

    Args:
        folder: where they lie.
        make: gives the choices of some sentences; called for chunks that are not there yet.
        leads: whether this process of the run makes them; the others read.
        tell: is told (sentences done, all sentences) after each chunk that was made.
    """

    folder: Path
    make: Make
    leads: bool
    tell: Callable[[int, int], None]

    def choices(self, sentences: Sequence[str]) -> Choices:
        """Returns the choices of all sentences.

        Raises:
            UserError: the cache cannot be written, and other processes of this run need it.
        """
        found: Choices = []
        for number, start in enumerate(range(0, len(sentences), CHUNK)):
            part = sentences[start : start + CHUNK]
            path = self.folder / f"{number:06d}.npz"
            chunk = load(path, len(part))
            if chunk is None and self.leads:
                chunk = self._made(path, part)
                self.tell(start + len(part), len(sentences))
            wait_for_all()  # chunk by chunk: none waits longer than for one of them
            chunk = chunk if chunk is not None else load(path, len(part))
            if chunk is None:
                raise UserError(
                    f"{self.folder}: the leading process could not write the augmentation for the others of this"
                    " run; let XDG_CACHE_HOME name a folder that can be written"
                )
            found += chunk
        return found

    def _made(self, path: Path, sentences: Sequence[str]) -> Choices:
        """Makes a chunk, or takes over what another job made in the meantime."""
        with _held(self.folder):
            chunk = load(path, len(sentences))
            if chunk is None:
                chunk = self.make(sentences)
                save(chunk, path)
        return chunk


@contextlib.contextmanager
def _held(folder: Path):
    """Holds the entry; where the disk has no lock to give, the work is done without."""
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):
            held.enter_context(locked(folder, wait=True))
        yield


def save(choices: Choices, path: Path) -> None:
    """Writes a chunk; a disk that is full or read-only costs the cache, not the run."""
    try:
        with replacing(path) as new:
            np.savez_compressed(new, allow_pickle=False, **_arrays(choices))
    except OSError as error:
        log.warning("the augmentation is not cached: %s", error)


def load(path: Path, sentences: int) -> Choices | None:
    """Returns a chunk of so many sentences; None where there is none that can be read."""
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            found = _choices({name: arrays[name] for name in arrays.files})
    except (OSError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
    return found if len(found) == sentences else None


def _arrays(choices: Choices) -> dict[str, np.ndarray]:
    """Returns arrays that say the same: candidates as numbers in a list of words, -1 where there are fewer."""
    flat = [choice for one in choices for choice in one]
    words = sorted({word for choice in flat for word in choice.words})
    number = {word: i for i, word in enumerate(words)}
    table = np.full((len(flat), max((len(choice.words) for choice in flat), default=0)), -1, dtype=np.int32)
    for row, choice in zip(table, flat, strict=True):
        row[: len(choice.words)] = [number[word] for word in choice.words]
    return {
        "counts": np.array([len(one) for one in choices], dtype=np.int32),
        "spans": np.array([(choice.start, choice.end) for choice in flat], dtype=np.int32).reshape(-1, 2),
        "kinds": np.array([KINDS.index(choice.kind) for choice in flat], dtype=np.int8),
        "candidates": table,
        "words": np.array(words, dtype=np.str_),
    }


def _choices(arrays: dict[str, np.ndarray]) -> Choices:
    words = [str(word) for word in arrays["words"]]
    flat = [
        Choice(start, end, KINDS[kind], tuple(words[i] for i in row if i >= 0))
        for (start, end), kind, row in zip(
            arrays["spans"].tolist(), arrays["kinds"].tolist(), arrays["candidates"].tolist(), strict=True
        )
    ]
    ends = np.cumsum(arrays["counts"]).tolist()
    return [flat[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
