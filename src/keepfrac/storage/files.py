"""Files that are there whole or not at all, and locks that a process lets go of when it dies."""

import contextlib
import errno
import os
import re
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
