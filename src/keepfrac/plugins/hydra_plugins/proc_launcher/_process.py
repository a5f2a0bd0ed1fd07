"""What the launcher asks of the operating system: locks, signals, and that no child outlives it."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from subprocess import Popen
from typing import IO, Protocol

from keepfrac.storage.files import HANDED

PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


class Process(Protocol):
    """A cell's process, however it was started."""

    pid: int
    returncode: int | None

    def poll(self) -> int | None:
        """Returns the exit code, minus the signal where one ended it; None while it runs."""


def signal_group(process: Process, number: int) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)


def start_process(command: list[str], output: IO[bytes], environment: Mapping[str, str], lock: int | None) -> Popen:
    """Starts a job in a session of its own: Ctrl-C reaches the launcher alone, which ends its children.

    Args:
        command: its command line.
        output: where all that it writes goes.
        environment: its.
        lock: what holds the lock of its cell, and goes on doing so in the job; None: it takes its own.
    """
    return Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env={**environment, **({} if lock is None else {HANDED: str(lock)})},
        pass_fds=() if lock is None else (lock,),
        start_new_session=True,
        preexec_fn=die_with_parent(os.getpid()),
    )


def die_with_parent(parent: int) -> Callable[[], None]:
    """Returns what a child does before its program starts: it asks Linux to kill it when the parent dies."""

    def ask() -> None:
        if _LIBC is not None:
            _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)

    return ask


@contextlib.contextmanager
def caught_signals() -> Iterator[list[int]]:
    """Yields a list that grows by each signal to stop; those ignored before (nohup) stay ignored."""
    caught: list[int] = []
    names = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    before = {name: signal.getsignal(name) for name in names if signal.getsignal(name) != signal.SIG_IGN}
    for name in before:
        signal.signal(name, lambda number, frame: caught.append(number))
    try:
        yield caught
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
