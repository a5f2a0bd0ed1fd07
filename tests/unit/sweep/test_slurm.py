"""What needs no cluster; sweeps on a real one are in tests/slurm."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from keepfrac.errors import UserError
from keepfrac.sweep import slurm
from keepfrac.sweep.slurm import Attempt, Request

ASKED = {
    "partition": None, "account": None, "time": 60, "warning": 120, "requeues": 3, "tasks": 1, "cpus": 4, "gpus": 0,
    "memory": None, "setup": (), "options": {},
}  # fmt: skip


def test_a_request_in_submitits_words():
    asked = {"partition": "long", "account": "lab", "gpus": 2, "tasks": 2, "memory": 1.5, "options": {"qos": "high"}}
    told = Request(**ASKED | asked).parameters("sweep", 8)
    assert (told["partition"], told["account"], told["gpus_per_node"]) == ("long", "lab", 2)
    assert (told["ntasks_per_node"], told["cpus_per_task"], told["time"]) == (2, 4, 60)
    assert told["mem"] == "1536MB"
    assert told["additional_parameters"] == {"requeue": True, "qos": "high"}
    assert not {"partition", "account", "gpus_per_node", "mem"} & set(Request(**ASKED).parameters("sweep", 8))


def test_submitit_knows_these_words():
    executor = pytest.importorskip("submitit.slurm.slurm", reason="submitit: make install-slurm")
    told = Request(**ASKED | {"partition": "long", "memory": 2, "gpus": 1}).parameters("sweep", 8)
    script = executor._make_sbatch_string(command="run", folder="logs", **told)
    assert "#SBATCH --requeue\n" in script and "--kill-on-bad-exit=1" in script
    assert "#SBATCH --partition=long\n" in script and "#SBATCH --signal=USR2@120\n" in script


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"time": 0}, "hydra.launcher.time=0: must be a whole number >= 1"),
        ({"cpus": "4"}, "hydra.launcher.cpus=4"),
        ({"time": 2, "warning": 120}, "must be less than time=2"),
    ],
)
def test_a_wrong_request_is_refused(wrong, said):
    with pytest.raises(UserError, match=said):
        Request(**ASKED | wrong)


def test_an_attempt_is_a_run_of_its_own(tmp_path, monkeypatch):
    program = (
        "import json, os, signal; print(json.dumps([os.environ['OMP_NUM_THREADS'], os.environ['KEEPFRAC_JOB'],"
        " signal.getsignal(signal.SIGUSR2) == signal.SIG_IGN]))"
    )
    monkeypatch.setenv("SLURM_PROCID", "0")
    Attempt((sys.executable, "-c", program), str(tmp_path / "cell"), 3)()
    assert json.loads((tmp_path / "cell/run.log").read_text()) == ["3", "1", True]


def test_a_run_that_fails_fails_its_job(tmp_path):
    with pytest.raises(RuntimeError, match=r"exit code 3: see .*run\.log"):
        Attempt((sys.executable, "-c", "raise SystemExit(3)"), str(tmp_path), 1)()


def test_a_cell_that_another_job_runs_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(slurm, "HELD_SECONDS", 0)
    flag = tmp_path / "flag"
    program = (
        f"import pathlib, sys; flag = pathlib.Path({str(flag)!r}); there = flag.exists(); flag.touch();"
        " sys.exit(0 if there else 75)"
    )
    Attempt((sys.executable, "-c", program), str(tmp_path), 1)()
    assert flag.exists()


def answer(monkeypatch, text: str, code: int = 0) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=text, returncode=code))


def test_the_queue_and_its_silence(monkeypatch):
    answer(monkeypatch, "7_0 RUNNING\n7_1 PENDING\n6 COMPLETED\n")
    assert slurm.queued() == {"7_0": "RUNNING", "7_1": "PENDING"}
    answer(monkeypatch, "", code=1)
    assert slurm.queued() is None


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ("JobId=7 JobState=FAILED Reason=None ExitCode=1:0", "Slurm: FAILED, exit code 1"),
        ("JobId=7 JobState=OUT_OF_MEMORY ExitCode=0:125", "Slurm: OUT_OF_MEMORY, signal 125"),
        ("", "no longer in Slurm's queue"),
    ],
)
def test_how_a_job_ended(monkeypatch, told, said):
    answer(monkeypatch, told)
    assert slurm.ended("7") == said
