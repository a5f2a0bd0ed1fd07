"""Runs in processes of their own that SIGKILL ends, at a moment within a phase that is aimed at.

A server that has imported everything forks them, so that a run that is killed costs its own seconds alone.
"""

import functools
import multiprocessing
import os
import signal
import tempfile
import time
from pathlib import Path

from keepfrac.run import delivery, identity
from keepfrac.run import run as one_run
from keepfrac.run.execution import Execution
from keepfrac.storage import delivered

PHASES = ("run", "fit", "finish", "save", "evaluate", "report")
"""All of a run; training; hardening, merging, cutting; writing model/; scoring it; writing that it is done."""
WAIT = 240
server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload([__name__])


def whole_run(cfg, folder: Path) -> dict[str, float]:
    """Runs a cell to its end; returns the seconds that each phase took."""
    process, messages = _start(cfg, folder, "")
    seconds: dict[str, float] = {}
    while set(seconds) != set(PHASES):
        name, took = _next(messages)
        seconds |= {} if took is None else {name: took}
    process.join(WAIT)
    assert process.exitcode == 0
    return seconds


def killed_run(cfg, folder: Path, phase: str, after: float) -> None:
    """Runs a cell and kills it that many seconds after a phase has begun, at the phase's end at the latest."""
    process, messages = _start(cfg, folder, phase)
    while _next(messages) != (phase, None):
        pass
    time.sleep(after)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def _start(cfg, folder: Path, phase: str) -> tuple:
    messages, theirs = server.Pipe(duplex=False)
    process = server.Process(target=_live, args=(cfg, folder, phase, theirs))
    process.start()
    theirs.close()
    return process, messages


def _next(messages) -> tuple[str, float | None]:
    assert messages.poll(WAIT), "a run takes too long"
    return messages.recv()


def _live(cfg, folder: Path, aimed: str, parent) -> None:
    """Makes a run in this process, and says where it is."""
    for variable, name in (("TMPDIR", "temporary"), ("KEEPFRAC_MULTIRUN", "multirun")):
        (folder / name).mkdir(exist_ok=True)
        os.environ[variable] = os.fspath(folder / name)
    tempfile.tempdir = None  # else it stays where it was
    identity.register()
    teller = _Teller(parent, aimed)
    teller.wrap(Execution, "_fit", "fit")
    teller.wrap(Execution, "_score", "evaluate")
    teller.wrap(delivery, "write_model", "save")
    build = Execution._build_module

    def build_module(self):
        build(self)
        teller.wrap(self.module, "finish", "finish")

    Execution._build_module = build_module
    account = delivered.account

    def first_of_the_report(where):
        teller.enter("report")
        return account(where)

    delivered.account = first_of_the_report
    teller.enter("run")
    one_run.run(cfg)
    teller.leave("report")
    teller.leave("run")


class _Teller:
    """Tells the parent where a phase begins and ends; at the end of the one that is aimed at it awaits its death."""

    def __init__(self, parent, aimed: str):
        self.parent, self.aimed, self.begun = parent, aimed, {}

    def enter(self, name: str) -> None:
        self.begun[name] = time.monotonic()
        self.parent.send((name, None))

    def leave(self, name: str) -> None:
        self.parent.send((name, time.monotonic() - self.begun[name]))
        while name == self.aimed:
            signal.pause()

    def wrap(self, owner, function: str, name: str) -> None:
        original = getattr(owner, function)

        @functools.wraps(original)
        def wrapped(*args, **kwargs):
            self.enter(name)
            found = original(*args, **kwargs)
            self.leave(name)
            return found

        setattr(owner, function, wrapped)
