"""The processes of a sweep: started, watched, and stopped with it.

One thread does it all: Linux ends a child whose parent *thread* ends (PR_SET_PDEATHSIG), and Python gives
signals to the main thread only.
"""

import contextlib
import os
import shlex
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import IO

from hydra_plugins.proc_launcher._process import Process, caught_signals, signal_group, start_process
from hydra_plugins.proc_launcher._warm import Cold, Server
from rich.console import Console
from rich.live import Live

from keepfrac.errors import Held
from keepfrac.storage import results
from keepfrac.storage.files import take_lock
from keepfrac.storage.redact import redact
from keepfrac.sweep import planning, terminal
from keepfrac.sweep.planning import Failure, Job, Kind, Running, Status

TICK_SECONDS = 0.1
POLL_SECONDS = 2.0
GRACE_SECONDS = 10.0


class Stopped(Exception):
    """A signal asked for the end."""

    def __init__(self, number: int):
        super().__init__(number)
        self.signal = number


@dataclass
class Child:
    """A process under way and where its part of the log begins."""

    job: Job
    process: Process
    log: Path
    log_start: int
    started: float = field(default_factory=time.time)

    def running(self) -> Running:
        progress = planning.read_progress(self.job.folder, since=self.started)
        return Running(self.job.label, self.job.kind, time.time() - self.started, progress)


class Pool:
    """Runs jobs to the end whatever happens to each.

    Args:
        jobs: what to run, in this order.
        command: the command line of a job.
        num_at_once: processes at a time.
        threads: threads of each.
        known: seconds of finished runs by kind, for the time left; grows as jobs end.
        num_done: cells done before, shown with the others.
        console: where to show.
        warm: whether jobs begin as copies of one process that has imported what they need, where that is possible.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        command: Callable[[Job], list[str]],
        num_at_once: int,
        threads: int,
        known: dict[Kind, list[float]],
        num_done: int,
        console: Console,
        warm: bool = False,
    ):
        self.queue, self.command, self.num_at_once, self.known = deque(jobs), command, num_at_once, known
        self.environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "KEEPFRAC_JOB": "1",  # tells a run that its output goes into its run.log already
            "PYTHONUNBUFFERED": "1",  # the log of a killed job ends where the job did
        }
        self.num_done, self.console = num_done, console
        self.warm = warm
        self._server: Server | None = None
        self.running: list[Child] = []
        self.failures: list[Failure] = []
        self._next_look: dict[str, float] = {}  # identity -> when to ask again for a cell that another process holds

    def run(self) -> list[Failure]:
        """Returns the failures once every job has ended.

        Raises:
            Stopped: SIGINT, SIGTERM or SIGHUP came; the children are gone.
        """
        with caught_signals() as caught, self._view() as refresh, self._warmed():
            try:
                while (self.queue or self.running) and not caught:
                    self._reap()
                    self._fill()
                    refresh()
                    time.sleep(TICK_SECONDS)
            finally:
                self._stop_children(caught)
            if caught:
                raise Stopped(caught[0])
        return self.failures

    def status(self) -> Status:
        """Returns how the sweep stands now."""
        running = tuple(child.running() for child in self.running)
        left = planning.seconds_left([job.kind for job in self.queue], running, self.known, self.num_at_once)
        held = sum(job.identity in self._next_look for job in self.queue)
        return Status(self.num_done, len(self.failures), len(self.queue), held, running, left)

    def _fill(self) -> None:
        """Starts jobs while there is room; looks at each waiting job once."""
        if not self._is_ready():
            return
        for _ in range(len(self.queue)):
            if len(self.running) >= self.num_at_once:
                return
            job = self.queue.popleft()
            if self._next_look.get(job.identity, 0.0) > time.monotonic():
                self.queue.append(job)
            elif results.is_done(job.folder, job.identity, job.code_asked):
                self._finished(job, "by another process")
            else:
                self._try(job)

    def _try(self, job: Job) -> None:
        """Starts a job with the lock of its cell in its hands, so that no other launcher starts it as well."""
        lock = None
        try:
            lock = take_lock(job.folder)
            self._start(job, lock)
        except Held:
            self._postpone(job)
        except OSError as error:
            self._failed(job, f"cannot be started: {error}", job.folder / "run.log", "")
        finally:
            if lock is not None:
                os.close(lock)

    def _start(self, job: Job, lock: int | None) -> None:
        log, command = job.folder / "run.log", self.command(job)
        with log.open("ab") as output:
            now = datetime.now().astimezone()
            output.write(f"--- {now:%Y-%m-%d %H:%M:%S} {redact(shlex.join(command))}\n".encode())
            output.flush()
            start = output.tell()
            process = self._process(command, output, lock)
        self._next_look.pop(job.identity, None)
        self.running.append(Child(job, process, log, start))
        self._say(f"started {job.label}")

    @contextlib.contextmanager
    def _warmed(self) -> Iterator[None]:
        """Has the process that copies itself while jobs run; one job alone has no use for it."""
        with contextlib.suppress(Cold):
            self._server = Server(self.environment) if self.warm and len(self.queue) > 1 else None
        try:
            yield
        finally:
            if self._server is not None:
                self._server.close()

    def _is_ready(self) -> bool:
        try:
            return self._server is None or self._server.is_ready()
        except Cold:
            self._cool()
            return True

    def _cool(self) -> None:
        assert self._server is not None
        self._server.close()
        self._server = None

    def _process(self, command: list[str], output: IO[bytes], lock: int | None) -> Process:
        try:
            if self._server is not None:
                return self._server.start(command[1:], output, lock)
        except Cold:
            self._cool()
        return start_process(command, output, self.environment, lock)

    def _reap(self) -> None:
        for child in [child for child in self.running if child.process.poll() is not None]:
            self.running.remove(child)
            job, code = child.job, child.process.returncode or 0
            if results.is_done(job.folder, job.identity, job.code_asked):
                self._finished(job, f"in {planning.duration(time.time() - child.started)}")
            elif code == Held.EXIT_CODE:
                self._postpone(job)
            else:
                self._failed(job, _why(job, code), child.log, planning.log_tail(child.log, child.log_start))

    def _postpone(self, job: Job) -> None:
        if job.identity not in self._next_look:
            self._say(f"waiting for {job.label}: another process runs it")
        self._next_look[job.identity] = time.monotonic() + POLL_SECONDS
        self.queue.append(job)

    def _finished(self, job: Job, how: str) -> None:
        self.num_done += 1
        self._next_look.pop(job.identity, None)
        left = results.read(job.folder) or {}
        for kind, seconds in planning.known_seconds([left]).items():
            self.known.setdefault(kind, []).extend(seconds)
        metric = f"val/{left.get('best_metric')}"
        score = (left.get("scores") or {}).get(metric)
        self._say(f"done    {job.label} {how}" + ("" if score is None else f", {metric} {score:.4f}"))

    def _failed(self, job: Job, reason: str, log: Path, tail: str) -> None:
        self.failures.append(Failure(job.label, reason, log, tail))
        self._say(f"failed  {job.label}: {redact(reason)}")

    def _say(self, line: str) -> None:
        ended = self.num_done + len(self.failures)
        self.console.print(f"[{ended}/{ended + len(self.queue) + len(self.running)}] {line}")

    @contextlib.contextmanager
    def _view(self) -> Iterator[Callable[[], None]]:
        """Yields what redraws the live table; without a terminal the lines of `_say` are all there is."""
        if not self.console.is_terminal or self.console.is_dumb_terminal:
            yield lambda: None
            return
        with Live(console=self.console, auto_refresh=False, transient=True) as live:
            yield lambda: live.update(terminal.live_view(self.status()), refresh=True)

    def _stop_children(self, caught: list[int]) -> None:
        """Ends what still runs: SIGTERM, and SIGKILL after a while or at a second signal."""
        deadline, signals = time.monotonic() + GRACE_SECONDS, len(caught)
        for child in self.running:
            signal_group(child.process, signal.SIGTERM)
        while any(child.process.poll() is None for child in self.running):
            if time.monotonic() > deadline or len(caught) > signals:
                for child in self.running:
                    signal_group(child.process, signal.SIGKILL)
            time.sleep(TICK_SECONDS)


def _why(job: Job, code: int) -> str:
    """Returns why a job failed, and leaves the same in a results.json that a killed job could not finish."""
    reason, left = planning.ended_by(code), results.read(job.folder)
    if left is None or left.get("identity") != job.identity:
        return reason
    if left.get("status") == "running":
        with contextlib.suppress(OSError):
            results.write(job.folder, {**left, "status": "failed", "error": reason})
        return reason
    return f"{reason}: {left['error']}" if code > 0 and left.get("error") else reason
