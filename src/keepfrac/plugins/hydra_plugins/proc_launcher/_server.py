"""A process that has imported what every cell needs, and makes a copy of itself for each, which goes on as the cell.

It is started by `_warm.Server`, runs no thread and touches no GPU before a copy is made, and does nothing else.
"""

import contextlib
import importlib
import json
import os
import random
import runpy
import select
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from hydra_plugins.proc_launcher._process import die_with_parent

from keepfrac.storage.files import HANDED
from keepfrac.storage.fingerprint import fingerprint_of_code

HEAVY = "keepfrac.run.execution"
LONGEST = 2**20  # bytes of a request


def main(descriptor: int) -> None:
    """Serves the launcher at the other end of a socket until it is gone; a copy returns once it has run its cell."""
    channel = socket.socket(fileno=descriptor)
    _import()
    _tell(channel, {"ready": _can_fork()})
    words = _serve(channel)
    if words is not None:
        _run(words)


def _import() -> None:
    from keepfrac.storage import hub

    hub.resolve_hub()  # before what reads its decision
    with contextlib.suppress(ImportError):  # what is missing is the cells' business
        importlib.import_module(HEAVY)
    fingerprint_of_code()  # now: a copy runs what was imported here, whatever becomes of the files


def _can_fork() -> bool:
    """Whether a copy would work: other threads are not copied, and a GPU that is in use cannot be."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return False
    trial = os.fork()  # before which OpenBLAS ends its threads, to begin them again when it is next used
    if trial == 0:
        os._exit(0)
    os.waitpid(trial, 0)
    return len(list(Path("/proc/self/task").iterdir())) == 1


def _serve(channel: socket.socket) -> list[str] | None:
    """Answers requests; returns the words of a cell in the copy that is to run it, None at the end."""
    server = os.getpid()
    with _woken_by_children() as awake:
        while True:
            ready, _, _ = select.select([channel.fileno(), awake], [], [])
            if awake in ready:
                os.read(awake, 4096)
                _reap(channel)
            if channel.fileno() not in ready:
                continue
            text, descriptors, _, _ = socket.recv_fds(channel, LONGEST, 2)
            if not text:
                return None
            if (child := os.fork()) == 0:
                break
            for one in descriptors:
                os.close(one)
            _tell(channel, {"pid": child})
    channel.close()
    _become(server, descriptors)
    return json.loads(text)


@contextlib.contextmanager
def _woken_by_children() -> Iterator[int]:
    """Yields a descriptor that can be read when a child has ended."""
    awake, wake = os.pipe()
    for end in (awake, wake):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wake)
    former = signal.signal(signal.SIGCHLD, lambda *_: None)
    try:
        yield awake
    finally:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, former)
        os.close(awake)
        os.close(wake)


def _reap(channel: socket.socket) -> None:
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            _tell(channel, {"ended": ended[0], "code": os.waitstatus_to_exitcode(ended[1])})


def _tell(channel: socket.socket, what: dict) -> None:
    channel.send(json.dumps(what).encode())


def _become(server: int, descriptors: Sequence[int]) -> None:
    """Makes a copy what a fresh process is: a session, streams and random numbers of its own."""
    os.setsid()
    die_with_parent(server)()
    output, *lock = descriptors
    for stream in (1, 2):
        os.dup2(output, stream)
    os.close(output)
    if lock:
        os.environ[HANDED] = str(lock[0])
    random.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()


def _run(words: list[str]) -> None:
    """Runs a program as the interpreter does: `-m`, a module and its arguments, or a file and its arguments."""
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")
