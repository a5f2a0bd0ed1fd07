import os
import time

import pytest
import torch

from keepfrac.errors import UserError
from keepfrac.training import distributed
from keepfrac.training.distributed import RankInfo, process_group, rank_info, spawn_workers


def add_up(value: float, here: RankInfo) -> float:
    with process_group(here, "cpu"):
        assert os.environ["LOCAL_RANK"] == str(here.rank)
        total = torch.tensor([value + here.rank])
        torch.distributed.all_reduce(total)
    return total.item()


def fail(error: Exception | None, rank: int, here: RankInfo) -> None:
    with process_group(here, "cpu"):
        if here.rank == rank:
            if error is None:
                os._exit(3)
            raise error
        torch.distributed.barrier()


def sleep(here: RankInfo) -> None:
    time.sleep(60)


def test_processes_meet_and_leave_nothing_behind():
    for _ in range(2):  # a sweep in one process runs one cell after the other
        here = rank_info(2)
        with spawn_workers(here, add_up, 1.0):
            assert add_up(1.0, here) == 3.0
        assert not torch.distributed.is_initialized()
        assert "LOCAL_RANK" not in os.environ


def test_one_device_is_this_process(monkeypatch):
    monkeypatch.setattr(distributed, "multiprocessing", None)
    here = rank_info(1)
    with spawn_workers(here, sleep), process_group(here, "cpu"):
        assert here == RankInfo(0, 1, 0, by_srun=False) and here.is_rank_zero
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
    here = rank_info(2)
    with pytest.raises(kind, match=text), spawn_workers(here, fail, error, 1):
        fail(error, 1, here)


def test_the_leaders_own_error_stays_and_ends_the_followers():
    begin = time.monotonic()
    with pytest.raises(KeyError, match="mine"), spawn_workers(rank_info(2), sleep):
        raise KeyError("mine")
    assert time.monotonic() - begin < 30


def test_tasks_of_srun_find_their_place(monkeypatch):
    for name, value in {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_JOB_ID": "10007"}.items():
        monkeypatch.setenv(name, value)
    here = rank_info(2)
    assert here == RankInfo(1, 2, 20007, by_srun=True) and not here.is_rank_zero
    assert here.threads(4) == 4  # as srun gave them
    assert rank_info(1) == RankInfo(0, 1, 0, by_srun=False)


def test_a_batch_script_without_srun_starts_its_own(monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert not rank_info(2).by_srun
    assert rank_info(2).threads(4) == 2
