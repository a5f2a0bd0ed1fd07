import os
import time

import pytest
import torch

from keepfrac.errors import UserError
from keepfrac.training import distributed
from keepfrac.training.distributed import Place, followers, joined, place


def add_up(value: float, place: Place) -> float:
    with joined(place, "cpu"):
        assert os.environ["LOCAL_RANK"] == str(place.rank)
        total = torch.tensor([value + place.rank])
        torch.distributed.all_reduce(total)
    return total.item()


def fail(error: Exception | None, rank: int, place: Place) -> None:
    with joined(place, "cpu"):
        if place.rank == rank:
            if error is None:
                os._exit(3)
            raise error
        torch.distributed.barrier()


def sleep(place: Place) -> None:
    time.sleep(60)


def test_processes_meet_and_leave_nothing_behind():
    for _ in range(2):  # a sweep in one process runs one cell after the other
        here = place(2)
        with followers(here, add_up, 1.0):
            assert add_up(1.0, here) == 3.0
        assert not torch.distributed.is_initialized()
        assert "LOCAL_RANK" not in os.environ


def test_one_device_is_this_process(monkeypatch):
    monkeypatch.setattr(distributed, "multiprocessing", None)
    here = place(1)
    with followers(here, sleep), joined(here, "cpu"):
        assert here == Place(0, 1, 0, by_srun=False) and here.leads
        assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (UserError("the loss is nan"), UserError, "^the loss is nan$"),
        (KeyError("head"), RuntimeError, "rank 1: KeyError: 'head'"),
        (None, RuntimeError, "rank 1 ended with exit code 3"),
    ],
)
def test_the_leader_says_what_a_follower_died_of(error, kind, text):
    here = place(2)
    with pytest.raises(kind, match=text), followers(here, fail, error, 1):
        fail(error, 1, here)


def test_the_leaders_own_error_stays_and_ends_the_followers():
    begin = time.monotonic()
    with pytest.raises(KeyError, match="mine"), followers(place(2), sleep):
        raise KeyError("mine")
    assert time.monotonic() - begin < 30


def test_tasks_of_srun_find_their_place(monkeypatch):
    for name, value in {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_JOB_ID": "10007"}.items():
        monkeypatch.setenv(name, value)
    here = place(2)
    assert here == Place(1, 2, 20007, by_srun=True) and not here.leads
    assert here.threads(4) == 4  # as srun gave them
    assert place(1) == Place(0, 1, 0, by_srun=False)


def test_a_batch_script_without_srun_starts_its_own(monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert not place(2).by_srun
    assert place(2).threads(4) == 2
