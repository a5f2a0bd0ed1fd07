"""Candidates to replace words: made once per content and settings, in chunks that outlive a kill.

An entry of the cache is a folder named by the sha256 of all that its content depends on. A chunk holds the candidates
of CHUNK sentences; it is written under a temporary name and then renamed, and made by one process at a time, so that
jobs that start together share the work. An entry may be deleted at any time.
"""

import contextlib
import gzip
import json
import logging
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from keepfrac.errors import UserError
from keepfrac.storage.files import locked, replacing
from keepfrac.tensors.barrier import wait_for_all

log = logging.getLogger(__name__)

CHUNK = 256
KINDS = ("none", "masked_lm", "neighbours")
"""Where the candidates of a word come from."""


@dataclass(frozen=True)
class WordCandidates:
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


Candidates = list[list[WordCandidates]]
"""Of each sentence, the candidates of its words."""
Make = Callable[[Sequence[str]], Candidates]


@dataclass(frozen=True)
class Store:
    """The chunks of one entry.

    Args:
        folder: where they lie.
        make: gives the candidates of some sentences; called for chunks that are not there yet.
        leads: whether this process of the run makes them; the others read.
        report_progress: called with (sentences done, all sentences) after each chunk that was made.
    """

    folder: Path
    make: Make
    leads: bool
    report_progress: Callable[[int, int], None]

    def candidates(self, sentences: Sequence[str]) -> Candidates:
        """Returns the candidates of all sentences.

        Raises:
            UserError: the cache cannot be written, and other processes of this run need it.
        """
        found: Candidates = []
        for number, start in enumerate(range(0, len(sentences), CHUNK)):
            part = sentences[start : start + CHUNK]
            path = self.folder / f"{number:06d}.json.gz"
            chunk = load(path, len(part))
            if chunk is None and self.leads:
                chunk = self._made(path, part)
                self.report_progress(start + len(part), len(sentences))
            wait_for_all()  # chunk by chunk: none waits longer than for one of them
            chunk = chunk if chunk is not None else load(path, len(part))
            if chunk is None:
                raise UserError(
                    f"{self.folder}: the leading process could not write the augmentation for the others of this"
                    " run; let XDG_CACHE_HOME name a folder that can be written"
                )
            found += chunk
        return found

    def _made(self, path: Path, sentences: Sequence[str]) -> Candidates:
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


def save(found: Candidates, path: Path) -> None:
    """Writes a chunk; a disk that is full or read-only costs the cache, not the run."""
    rows = [[(word.start, word.end, word.kind, word.words) for word in one] for one in found]
    try:
        with replacing(path) as new:
            new.write_bytes(gzip.compress(json.dumps(rows).encode(), mtime=0))
    except OSError as error:
        log.warning("the augmentation is not cached: %s", error)


def load(path: Path, sentences: int) -> Candidates | None:
    """Returns a chunk of so many sentences; None where there is none that can be read."""
    try:
        rows = json.loads(gzip.decompress(path.read_bytes()))
        found = [[WordCandidates(start, end, kind, tuple(words)) for start, end, kind, words in one] for one in rows]
    except (OSError, EOFError, TypeError, ValueError, zlib.error):
        return None
    return found if len(found) == sentences else None
