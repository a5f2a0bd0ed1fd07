"""Files that are there whole or not at all, and locks that a process lets go of when it dies."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from keepfrac.errors import Held

LOCK = ".lock"


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a path to write a file or a folder at, which takes the place of `path` at the end.

    Neither a reader, nor a crash, nor a power cut meets half of it; where an error is raised, `path` is as it was.

    Raises:
        OSError: the disk takes no more; or `path` is a folder, and not empty.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield scratch / path.name
        _flush(scratch / path.name)
        os.replace(scratch / path.name, path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _flush(new: Path) -> None:
    """Waits until a file, or all files of a folder, are on the disk and not only in the system's memory."""
    for path in (new, *new.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


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
