"""Files that are there whole or not at all, and locks that a process lets go of when it dies."""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from keepfrac.errors import Held

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
HANDED = "KEEPFRAC_LOCK"
"""In the environment of a process that was given a lock: the descriptor that holds it."""


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
    """Holds the lock of a folder, or the one that this process was given by `take_lock`.

    Args:
        folder: made where it is missing.
        wait: whether to wait for another process that holds it.

    Raises:
        Held: another process holds it, and `wait` is off.
        OSError: the disk has no lock to give.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (given := _given(folder)) is not None:
        try:
            yield
        finally:
            os.close(given)
        return
    lock = FileLock(folder / LOCK, timeout=-1 if wait else 0)
    try:
        lock.acquire()
    except Timeout as error:
        raise _held(folder) from error
    try:
        yield
    finally:
        lock.release()


def take_lock(folder: Path) -> int | None:
    """Takes the lock of a folder for a process that is to be started, as `locked` does.

    The process inherits the descriptor, whose number stands in its environment under HANDED; the lock is free once all
    copies of the descriptor are closed.

    Returns:
        The descriptor; None where there are no such locks: the process takes its own.

    Raises:
        Held: another process holds it.
    """
    if fcntl is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_nlink:
            return descriptor
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            os.close(descriptor)
            return None
    os.close(descriptor)  # another holds it, or has removed the file while it let go
    raise _held(folder)


def _held(folder: Path) -> Held:
    return Held(f"another process is running this cell: {folder}")


def _given(folder: Path) -> int | None:
    """The descriptor that holds the lock of this folder, where the process was started with it."""
    descriptor = int(os.environ.get(HANDED, -1))
    try:
        if not os.path.samestat(os.fstat(descriptor), (folder / LOCK).stat()):
            return None
    except OSError:
        return None
    del os.environ[HANDED]
    os.set_inheritable(descriptor, False)
    return descriptor
