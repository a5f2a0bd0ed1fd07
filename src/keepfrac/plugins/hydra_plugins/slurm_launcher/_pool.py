"""The jobs of a sweep in Slurm's queue: submitted at once, watched until the last has left it."""

import contextlib
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hydra_plugins.proc_launcher._pool import Pool
from rich.console import Console

from keepfrac.storage import results
from keepfrac.sweep import planning, slurm
from keepfrac.sweep.planning import Job, Kind, Running, Status
from keepfrac.sweep.slurm import Attempt, Request

POLL_SECONDS = 2.0
ABSENT_POLLS = 3  # the nodes' files reach this machine a moment after Slurm's word


@dataclass
class Queued:
    """A cell in the queue and where its part of the log begins."""

    job: Job
    id: str
    log: Path
    log_start: int
    started: float = field(default_factory=time.time)
    state: str = "PENDING"
    absent: int = 0

    def running(self) -> Running:
        progress = planning.read_progress(self.job.folder, since=self.started)
        return Running(
            self.job.label, self.job.kind, time.time() - self.started, {"phase": self.state.lower(), **progress}
        )


class SlurmPool(Pool):
    """Has jobs run by Slurm, to the end whatever happens to each.

    Args:
        jobs: what to run.
        command: the command line of a job.
        num_at_once: jobs that may run at a time.
        request: what each asks of Slurm.
        known: seconds of finished runs by kind, for the time left.
        num_done: cells done before, shown with the others.
        console: where to show.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        command: Callable[[Job], list[str]],
        num_at_once: int,
        request: Request,
        known: dict[Kind, list[float]],
        num_done: int,
        console: Console,
    ):
        super().__init__(
            jobs,
            command=command,
            num_at_once=num_at_once,
            threads=request.cpus,
            known=known,
            num_done=num_done,
            console=console,
        )
        self.request = request
        self.running: list[Queued] = []
        self._next_poll, self._silent = 0.0, False

    def status(self) -> Status:
        running = tuple(one.running() for one in self.running if one.state != "PENDING")
        waiting = [one.job.kind for one in self.running if one.state == "PENDING"]
        left = planning.seconds_left(waiting, running, self.known, self.num_at_once)
        return Status(self.num_done, len(self.failures), len(waiting), 0, running, left)

    def _fill(self) -> None:
        """Submits everything."""
        if not self.queue:
            return
        jobs = list(self.queue)
        self.queue.clear()
        attempts = [Attempt(tuple(self.command(job)), str(job.folder), self.request.cpus) for job in jobs]
        sweep_folder = jobs[0].folder.parent
        ids = slurm.submit(attempts, self.request, sweep_folder.name, sweep_folder / ".slurm", self.num_at_once)
        for job, id_ in zip(jobs, ids, strict=True):
            log = job.folder / "run.log"
            self.running.append(Queued(job, id_, log, log.stat().st_size if log.exists() else 0))
        self._say(f"submitted {len(ids)} jobs to Slurm: {ids[0]}" + (f" to {ids[-1]}" if ids[1:] else ""))

    def _reap(self) -> None:
        if time.monotonic() < self._next_poll:
            return
        self._next_poll = time.monotonic() + POLL_SECONDS
        states = slurm.queued()  # before the results are looked at: a job that is gone has written its own
        if (states is None) != self._silent:
            self._silent = states is None
            self._say("Slurm does not answer; asking again" if self._silent else "Slurm answers again")
        for one in list(self.running):
            if states is not None:
                self._moved(one, states.get(one.id))
            if results.is_done(one.job.folder, one.job.identity, one.job.code_asked):
                self.running.remove(one)
                self._finished(one.job, f"in {planning.duration(time.time() - one.started)}")
            elif one.absent >= ABSENT_POLLS:
                self.running.remove(one)
                self._failed(one.job, _why(one), one.log, planning.log_tail(one.log, one.log_start))

    def _moved(self, one: Queued, state: str | None) -> None:
        one.absent = one.absent + 1 if state is None else 0
        if state == "RUNNING" and one.state == "PENDING":
            self._say(f"started {one.job.label}: job {one.id}")
        elif state == "PENDING" and one.state not in ("PENDING", "CONFIGURING"):
            self._say(f"waiting for {one.job.label}: job {one.id} is queued again")
        one.state = state or one.state

    def _stop_children(self, caught: list[int]) -> None:
        if not (caught and self.running):
            return
        if caught[0] == signal.SIGHUP:
            return  # a lost connection is no reason to end jobs elsewhere
        slurm.cancel([one.id for one in self.running])
        self._say("cancelled the jobs in Slurm's queue")


def _why(one: Queued) -> str:
    """Returns why a job failed, and leaves the same in a results.json that a killed job could not finish."""
    reason, left = slurm.ended(one.id), results.read(one.job.folder)
    if left is None or left.get("identity") != one.job.identity:
        return reason
    if left.get("status") == "running":
        reason = f"ended before its results were written ({reason})"
        with contextlib.suppress(OSError):
            results.write(one.job.folder, {**left, "status": "failed", "error": reason})
        return reason
    return f"{left['error']} ({reason})" if left.get("error") else reason
