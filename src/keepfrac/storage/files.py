"""Files that are there whole or not at all, and locks that a process lets go of when it dies."""

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from keepfrac.errors import Held

LOCK = ".lock"
SCRATCH = re.compile(r"\..+\.([a-z0-9_]{8}|\d+)")
"""Names of what `replacing` has not put in its place yet; digits alone: those of version 0.1.0."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a path to write a file or a folder at, which takes the place of `path` at the end.

    Neither a reader, nor a crash, nor a power cut meets half of it; where an error is raised, `path` is as it was. A
    killed process leaves its half beside `path`, for `remove_scratch`.

    Raises:
        OSError: the disk takes no more; or `path` is a folder, and not empty.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield scratch / path.name
        flush(scratch / path.name)
        os.replace(scratch / path.name, path)
        _flush(path.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def flush(path: Path) -> None:
    """Waits until a file, or a folder with all that is in it, is on the disk and not only in the system's memory."""
    for place, _, names in os.walk(path, topdown=False):
        for name in names:
            _flush(Path(place, name))
        _flush(Path(place))
    if not path.is_dir():
        _flush(path)


def _flush(path: Path) -> None:
    if path.is_symlink() or not (path.is_file() or path.is_dir()):
        return  # opening a pipe would wait for who writes into it
    with contextlib.suppress(FileNotFoundError):  # W&B's process, for one, takes its own files away meanwhile
        number = os.open(path, os.O_RDONLY)
        try:
            os.fsync(number)
        except OSError:
            if not path.is_dir():  # some network disks have no such thing for a folder
                raise
        finally:
            os.close(number)


def remove_scratch(folder: Path) -> None:
    """Removes what killed processes left half-written in a folder, whose lock the caller holds."""
    for path in [path for path in Path(folder).rglob(".*") if SCRATCH.fullmatch(path.name)]:
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Writes a whole text file or nothing."""
    with replacing(path) as new:
        new.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def locked(folder: Path, wait: bool = False) -> Iterator[None]:
    """Holds the lock of a folder.

    Args:
        folder: made where it is missing.
        wait: whether to wait for another process that holds it.

    Raises:
        Held: another process holds it, and `wait` is off.
        OSError: the disk has no lock to give.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, timeout=-1 if wait else 0)
    try:
        lock.acquire()
    except Timeout as error:
        raise Held(f"another process is running this cell: {folder}") from error
    try:
        yield
    finally:
        lock.release()


def is_locked(folder: Path) -> bool:
    """Returns whether another process holds the lock of a folder."""
    if not (folder / LOCK).exists():
        return False
    try:
        with locked(folder):
            return False
    except Held:
        return True
