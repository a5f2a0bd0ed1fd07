"""The processes of one run on several devices of one machine: the first leads and writes, the others only compute.

Where `srun` started them they find one another by its environment. Else the first starts the others: fresh processes
that are given the resolved configuration, so no command line is replayed and no sweep walked twice. A follower ends
with its leader, and the leader says what a follower died of.
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
class Place:
    """This process among those of its run.

    Args:
        rank: from 0, which leads.
        world: how many processes.
        port: of this machine, where they meet.
        by_srun: whether srun started all of them.
    """

    rank: int
    world: int
    port: int
    by_srun: bool

    @property
    def leads(self) -> bool:
        """Whether this process writes the results."""
        return self.rank == 0

    def threads(self, available: int) -> int:
        """Returns this process's part of the threads; tasks of srun have their own number already."""
        return available if self.by_srun else max(1, available // self.world)


def place(devices: int) -> Place:
    """Returns this process's place in a run on `devices` devices."""
    environment = os.environ
    # not SLURM_NTASKS: a batch script that runs us without srun has it too, and there nobody else would come
    if devices > 1 and int(environment.get("SLURM_STEP_NUM_TASKS", "1")) == devices:
        port = 20000 + int(environment["SLURM_JOB_ID"]) % 10000
        return Place(int(environment["SLURM_PROCID"]), devices, port, by_srun=True)
    return Place(0, devices, _free_port() if devices > 1 else 0, by_srun=False)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextlib.contextmanager
def joined(place: Place, accelerator: str) -> Iterator[None]:
    """Within it the run's processes can talk to one another; one process alone has nobody to talk to."""
    if place.world == 1:
        yield
        return
    from torch import cuda, distributed

    before = {name: os.environ.get(name) for name in VARIABLES}
    # Lightning asks these for its rank, and starts no processes of its own where they are set
    os.environ |= dict(zip(VARIABLES, (str(place.rank), "127.0.0.1", str(place.port)), strict=True))
    if accelerator == "gpu":
        cuda.set_device(place.rank)
    backend = "nccl" if accelerator == "gpu" else "gloo"
    try:
        store = distributed.TCPStore("127.0.0.1", place.port, place.world, place.leads, MEETING)
        distributed.init_process_group(backend, store=store, rank=place.rank, world_size=place.world, timeout=COMPUTING)
        yield
        distributed.barrier()  # the first process holds the meeting point: none may leave before all are through
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@contextlib.contextmanager
def followers(place: Place, work: Callable[..., object], *arguments: object) -> Iterator[None]:
    """Starts the other processes, which run `work(*arguments, their place)`; ends with the last of them.

    Raises:
        UserError: as a follower said it.
        RuntimeError: a follower failed otherwise.
    """
    if place.by_srun or place.world == 1:
        yield
        return
    spawn = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads in the middle of their work
    started = []
    try:
        for rank in range(1, place.world):
            ours, theirs = spawn.Pipe()
            task = (theirs, Place(rank, place.world, place.port, by_srun=False), work, arguments)
            process = spawn.Process(target=_follow, args=task, name=f"rank {rank}")
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
    """Returns what a follower died of; None where it lives or ended well."""
    process.join(5)
    if not process.exitcode:
        return None
    with contextlib.suppress(EOFError, OSError):
        if ours.poll():
            by_user, text = ours.recv()
            return UserError(text) if by_user else RuntimeError(f"{process.name}: {text}")
    return RuntimeError(f"{process.name} ended with exit code {process.exitcode}")


def _follow(leader, place: Place, work: Callable[..., object], arguments: tuple) -> None:
    """Is what a follower runs: the work, under the eye of its leader."""
    threading.Thread(target=_end_with, args=(leader,), daemon=True).start()
    try:
        work(*arguments, place)
    except Exception as error:
        text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        leader.send((isinstance(error, UserError), text))
        raise SystemExit(1) from error


def _end_with(leader) -> None:
    with contextlib.suppress(EOFError, OSError):
        leader.recv()  # the leader says nothing: this returns when it is gone
    os._exit(1)
