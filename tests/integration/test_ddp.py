"""Two processes on the CPU are one: the same weights and scores as one process at an equal global batch."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from keepfrac.errors import UserError
from keepfrac.run import identity
from keepfrac.run.run import run
from keepfrac.training.checkpoint_files import CHECKPOINT
from tests.runs import check_close, results_of, weights_of

TWO = ("hardware=cpus",)
EXACT = ("model.dropout=0", "model.attention_dropout=0")


def test_two_processes_equal_one(composed):
    """With a start of their own; tests/contract/test_laws.py has all methods."""
    common = [*EXACT, "steps=8", "eval_every=4", "accumulate=2"]
    one, two = composed(*common, "name=one"), composed(*common, *TWO, "name=two")
    run(one), run(two)
    check_close(one, two, 1e-5)
    results, results_of_two = results_of(one), results_of(two)
    assert results["identity"] != results_of_two["identity"]  # each process has a dropout of its own
    for name, score in results["scores"].items():
        assert results_of_two["scores"][name] == pytest.approx(score, abs=1e-5 if "loss" in name else 0), name
    assert results_of_two["cost"]["best_step"] == results["cost"]["best_step"]
    assert not torch.distributed.is_initialized()
    assert "LOCAL_RANK" not in os.environ


def test_one_process_writes_what_a_run_leaves(composed):
    cfg = composed("method=norm", *TWO, "steps=4", "fidelity_every=2", "checkpoint_every=2")
    results = run(cfg)
    folder = identity.cell(cfg).folder
    assert results["status"] == "done" and results["kept"]["achieved"] == pytest.approx(0.3, abs=0.01)
    assert results["provenance"]["data"]["rows"]["test"] == 32
    # written by one process: no step twice, nothing left behind
    lines = [line.rsplit(",", 1)[0] for line in (folder / "metrics.csv").read_text().splitlines()]
    assert len(lines) == len(set(lines))
    assert {path.name for path in folder.iterdir() if path.name != ".lock"} == {
        "config.yaml", "metrics.csv", "model", "progress.json", "results.json", "run.log",
    }  # fmt: skip


def test_scoring_alone_on_two_processes(composed):
    one, two = composed("epochs=0", "name=one"), composed("epochs=0", *TWO, "name=two")
    assert run(one)["scores"]["test/accuracy"] == run(two)["scores"]["test/accuracy"]


def test_killed_on_the_way_goes_on_bitwise(composed, caplog):
    """With dropout, which each process has of its own: their random states are restored by rank."""
    overrides = ["method=rand", *TWO, "model.dropout=0.1", "epochs=2", "checkpoint_every=3", "probe_steps=0"]
    whole, broken = composed(*overrides, "name=whole"), composed(*overrides, "name=broken")
    run(whole)
    folder = identity.cell(broken).folder
    program = (
        "import json, sys; from omegaconf import OmegaConf; from keepfrac.run.run import run;"
        "run(OmegaConf.create(json.loads(sys.argv[1])))"
    )
    settings = json.dumps(identity.plain(broken))
    process = subprocess.Popen([sys.executable, "-c", program, settings], start_new_session=True)
    wait_for(folder / CHECKPOINT, process)
    process.kill()  # the leader alone: its follower must end by itself
    process.wait()
    wait_until_gone(process.pid)
    with caplog.at_level("INFO"):
        run(broken)
    assert "goes on from step" in caplog.text
    weights, again = weights_of(whole), weights_of(broken)
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert results_of(whole)["scores"] == results_of(broken)["scores"]


def test_what_one_process_cannot_do_is_said_by_the_leader(composed, monkeypatch):
    """A follower that is killed ends the run, with its name, and the cell says `failed`."""
    cfg = composed(*TWO, "epochs=400", "checkpoint_every=3", "probe_steps=0")
    folder = identity.cell(cfg).folder
    killer = threading.Thread(target=kill_follower, args=(folder / CHECKPOINT,))
    killer.start()
    with pytest.raises(RuntimeError, match=r"rank 1 ended with exit code -9"):
        run(cfg)
    killer.join()
    results = json.loads((folder / "results.json").read_text())
    assert results["status"] == "failed" and "rank 1" in results["error"]


@pytest.mark.parametrize("hardware", ["gpu", "gpus"])
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_no_gpu_is_one_clear_sentence(composed, hardware):
    cfg = composed(f"hardware={hardware}")
    with pytest.raises(UserError, match=rf"hardware={hardware} wants \d NVIDIA GPU"):
        run(cfg)
    results = json.loads((identity.cell(cfg).folder / "results.json").read_text())
    assert results["status"] == "failed" and "set hardware=cpu" in results["error"]


def wait_for(path, process) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


def wait_until_gone(session: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            os.killpg(session, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    os.killpg(session, signal.SIGKILL)
    pytest.fail("a follower outlived its leader")


def kill_follower(checkpoint) -> None:
    import multiprocessing

    deadline = time.monotonic() + 120
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    for child in multiprocessing.active_children():
        if child.name == "rank 1":
            child.kill()
