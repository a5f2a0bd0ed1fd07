"""The processes of one run on several devices of one machine: rank zero writes the results, the others only compute.

Where `srun` started them they find one another by its environment. Else the first starts the others: fresh processes
that are given the resolved configuration, so no command line is replayed and no sweep walked twice. A worker ends
with rank zero, which says what a worker died of.
"""

import contextlib
import multiprocessing
import os
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta

from keepfrac.errors import UserError

MEETING = timedelta(minutes=5)  # the longest that processes may differ in their start
COMPUTING = timedelta(minutes=30)  # the longest that one of them may compute while the others wait
VARIABLES = ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class RankInfo:
    """This process among those of its run.

    Args:
        rank: from 0, which writes the results.
        world_size: how many processes.
        port: of this machine, where they meet.
        by_srun: whether srun started all of them.
    """

    rank: int
    world_size: int
    port: int
    by_srun: bool

    @property
    def is_rank_zero(self) -> bool:
        """Whether this process writes the results."""
        return self.rank == 0

    def threads(self, available: int) -> int:
        """Returns this process's part of the threads; tasks of srun have their own number already."""
        return available if self.by_srun else max(1, available // self.world_size)


def rank_info(devices: int) -> RankInfo:
    """Returns which process this is in a run on `devices` devices."""
    environment = os.environ
    # not SLURM_NTASKS: a batch script that runs us without srun has it too, and there is no other process
    if devices > 1 and int(environment.get("SLURM_STEP_NUM_TASKS", "1")) == devices:
        port = 20000 + int(environment["SLURM_JOB_ID"]) % 10000
        return RankInfo(int(environment["SLURM_PROCID"]), devices, port, by_srun=True)
    return RankInfo(0, devices, _free_port() if devices > 1 else 0, by_srun=False)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextlib.contextmanager
def process_group(info: RankInfo, accelerator: str) -> Iterator[None]:
    """Opens the process group of a run; of one process alone, none."""
    if info.world_size == 1:
        yield
        return
    from torch import cuda, distributed

    before = {name: os.environ.get(name) for name in VARIABLES}
    # Lightning asks these for its rank, and starts no processes of its own where they are set
    os.environ |= dict(zip(VARIABLES, (str(info.rank), "127.0.0.1", str(info.port)), strict=True))
    if accelerator == "gpu":
        cuda.set_device(info.rank)
    backend = "nccl" if accelerator == "gpu" else "gloo"
    try:
        store = distributed.TCPStore("127.0.0.1", info.port, info.world_size, info.is_rank_zero, MEETING)
        distributed.init_process_group(
            backend, store=store, rank=info.rank, world_size=info.world_size, timeout=COMPUTING
        )
        yield
        distributed.barrier()  # the first process holds the meeting point: none may leave before all are through
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@contextlib.contextmanager
def spawn_workers(info: RankInfo, work: Callable[..., object], *arguments: object) -> Iterator[None]:
    """Starts the other processes, which run `work(*arguments, their RankInfo)`; ends with the last of them.

    Raises:
        UserError: as a worker raised it.
        RuntimeError: a worker failed otherwise.
    """
    if info.by_srun or info.world_size == 1:
        yield
        return
    spawn = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads in the middle of their work
    started = []
    try:
        for rank in range(1, info.world_size):
            ours, theirs = spawn.Pipe()
            task = (theirs, RankInfo(rank, info.world_size, info.port, by_srun=False), work, arguments)
            process = spawn.Process(target=_work, args=task, name=f"rank {rank}")
            process.start()
            theirs.close()
            started.append((process, ours))
        yield
        for process, _ in started:
            process.join(COMPUTING.total_seconds())
    except Exception as error:
        for process, ours in started if _lost_a_peer(error) else ():
            if cause := _reason(process, ours):
                raise cause from error
        raise
    finally:
        for process, ours in started:
            process.kill()  # they write nothing that a sudden end could tear
            process.join()
            ours.close()


def _lost_a_peer(error: Exception) -> bool:
    """Whether this is but the echo of another process's end."""
    from torch import distributed

    return isinstance(error, distributed.DistError) or "gloo" in str(error)


def _reason(process, ours) -> Exception | None:
    """Returns what a worker died of; None where it lives or ended well."""
    process.join(5)
    if not process.exitcode:
        return None
    with contextlib.suppress(EOFError, OSError):
        if ours.poll():
            by_user, text = ours.recv()
            return UserError(text) if by_user else RuntimeError(f"{process.name}: {text}")
    return RuntimeError(f"{process.name} ended with exit code {process.exitcode}")


def _work(parent, info: RankInfo, work: Callable[..., object], arguments: tuple) -> None:
    """Runs the work in a worker, which ends when rank zero does."""
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    try:
        work(*arguments, info)
    except Exception as error:
        text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        parent.send((isinstance(error, UserError), text))
        raise SystemExit(1) from error


def _end_with(parent) -> None:
    with contextlib.suppress(EOFError, OSError):
        parent.recv()  # the parent says nothing: this returns when it is gone
    os._exit(1)
