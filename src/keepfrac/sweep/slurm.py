"""Cells as jobs of a Slurm cluster: what is asked for, what a job does, how jobs stand.

submitit writes the batch script and queues a job again when its time is up. What a job did is told by its cell's
results.json, and whether it is still under way by `squeue`: neither needs Slurm's accounting, which not every cluster
has, and a job that was killed leaves no other trace.
"""

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from keepfrac.errors import Held, UserError

HELD_SECONDS = 30
MOST_AT_ONCE = 1000  # jobs of an array; Slurm's own limit (MaxArraySize) is 1001 unless it is set
GONE = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "BOOT_FAIL", "DEADLINE"})


@dataclass(frozen=True)
class Request:
    """What each job asks of Slurm.

    Args:
        partition: None: the cluster's default.
        account: None: the user's default.
        time: minutes of one attempt, >= 1.
        warning: seconds before its end at which a job is told to queue again, below 60 * time.
        requeues: how often a job whose time was up is queued again, >= 0.
        tasks: processes of a job, >= 1.
        cpus: cores, and threads, of each process, >= 1.
        gpus: of a job, >= 0.
        memory: gigabytes of a job; None: the cluster's default.
        setup: lines of shell before the run.
        options: further options of sbatch, such as qos.
    """

    partition: str | None
    account: str | None
    time: int
    warning: int
    requeues: int
    tasks: int
    cpus: int
    gpus: int
    memory: float | None
    setup: tuple[str, ...]
    options: dict[str, str | int | bool] = field(hash=False)

    def __post_init__(self) -> None:
        least = {"time": 1, "warning": 0, "requeues": 0, "tasks": 1, "cpus": 1, "gpus": 0}
        for key, low in least.items():
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise UserError(f"hydra.launcher.{key}={value}: must be a whole number >= {low}")
        if self.warning >= 60 * self.time:
            raise UserError(
                f"hydra.launcher.warning={self.warning} (seconds): must be less than time={self.time} (minutes),"
                " else a job is queued again as soon as it starts"
            )

    def parameters(self, name: str, at_once: int) -> dict:
        """Returns them as submitit takes them."""
        given = {
            "partition": self.partition,
            "account": self.account,
            "gpus_per_node": self.gpus or None,
            "mem": f"{int(self.memory * 1024)}MB" if self.memory else None,
        }
        return {
            "job_name": name,
            "time": self.time,
            "signal_delay_s": self.warning,
            "nodes": 1,
            "ntasks_per_node": self.tasks,
            "cpus_per_task": self.cpus,
            "array_parallelism": at_once,
            "stderr_to_stdout": True,
            # srun takes the cores of a task from its own variable since Slurm 22.05
            "setup": [f"export SRUN_CPUS_PER_TASK={self.cpus}", *self.setup],
            "srun_args": ["--kill-on-bad-exit=1"],  # a process whose peer is gone would wait for ever
            "additional_parameters": {"requeue": True, **self.options},
            **{key: value for key, value in given.items() if value is not None},
        }


@dataclass(frozen=True)
class Attempt:
    """One cell's run as submitit calls it in a job: a fresh process, whose output goes into the cell's run.log.

    Args:
        command: of the run.
        folder: of the cell.
        threads: of each process.
    """

    command: tuple[str, ...]
    folder: str
    threads: int

    def __call__(self) -> None:
        """Runs it to its end.

        Raises:
            RuntimeError: the run failed, so that Slurm calls the job failed too.
        """
        code = self._run()
        while code == Held.EXIT_CODE:  # a job of an earlier launch: what it leaves is as good
            time.sleep(HELD_SECONDS)
            code = self._run()
        if code:
            raise RuntimeError(f"exit code {code}: see {self.folder}/run.log")

    def _run(self) -> int:
        environment = {
            **os.environ,
            "KEEPFRAC_JOB": "1",  # tells a run that its output goes into its run.log already
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": str(self.threads),
            "MKL_NUM_THREADS": str(self.threads),
        }
        leads = os.environ.get("SLURM_PROCID", "0") == "0"
        log = Path(self.folder) / "run.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") if leads else contextlib.nullcontext() as output:
            process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                preexec_fn=_ignore_warnings,
            )
            return process.wait()

    def checkpoint(self):
        """Returns what the job does when it has been queued again: the same, for a run goes on by itself."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _ignore_warnings() -> None:
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # Slurm sends it to every process of a job, submitit answers it


def submit(attempts: Sequence[Attempt], request: Request, name: str, folder: Path, at_once: int) -> list[str]:
    """Queues one job per attempt, as arrays; returns their ids.

    Args:
        attempts: what to run.
        request: what each asks for.
        name: of the jobs.
        folder: where submitit keeps scripts and logs; on a disk that the nodes share.
        at_once: how many may run at a time.

    Raises:
        UserError: Slurm refuses them.
    """
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    executor = submitit.SlurmExecutor(folder, max_num_timeout=request.requeues)
    executor.update_parameters(**request.parameters(name, at_once))
    jobs: list = []
    try:
        for start in range(0, len(attempts), MOST_AT_ONCE):
            with executor.batch():
                jobs += [executor.submit(attempt) for attempt in attempts[start : start + MOST_AT_ONCE]]
    except (FailedJobError, FailedSubmissionError) as error:
        raise UserError(f"Slurm refuses the jobs: {_said(error)}") from error
    return [str(job.job_id) for job in jobs]


def _said(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.startswith(("sbatch:", "slurm"))]
    return " ".join(lines or str(error).splitlines()[-1:])


def queued() -> dict[str, str] | None:
    """Returns the states of the user's jobs in the queue, by id; None where Slurm does not answer."""
    answer = _ask("squeue", "--me", "--noheader", "--array", "--format=%i %T")
    if answer is None:
        return None
    pairs = (line.split(maxsplit=1) for line in answer.splitlines() if line.strip())
    return {job: state for job, state in pairs if state.strip() not in GONE}


def ended(job: str) -> str:
    """Says how a job ended, as far as Slurm remembers."""
    answer = _ask("scontrol", "--oneliner", "show", "job", job) or ""
    found = {key: match[1] for key in ("JobState", "ExitCode") if (match := re.search(rf"{key}=(\S+)", answer))}
    state = found.get("JobState")
    code, _, number = found.get("ExitCode", "0:0").partition(":")
    how = f", signal {number}" if number not in ("", "0") else f", exit code {code}" if code != "0" else ""
    return f"Slurm: {state}{how}" if state else "no longer in Slurm's queue"


def cancel(jobs: Sequence[str]) -> None:
    """Takes jobs out of the queue, also those that run."""
    _ask("scancel", *jobs)


def _ask(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
