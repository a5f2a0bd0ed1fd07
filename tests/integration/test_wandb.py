"""Streaming to W&B by the real client, against a stand-in server: what arrives, once, and where."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import wandb

from keepfrac.run.run import run
from keepfrac.storage import results
from keepfrac.tracking import wandb_run
from tests.standin_wandb import StandIn

PARTS = ("val", "test", "kept", "size", "cost")


@pytest.fixture
def server():
    with StandIn() as one:
        yield one
        assert one.unknown == []


def rows(folder: Path) -> dict[int, dict[str, float]]:
    """What metrics.csv holds, by step; a figure that comes again begins the next row."""
    found, at = {0: {}}, 0
    for line in (folder / "metrics.csv").read_text().splitlines()[1:]:
        step, name, value = line.split(",")
        at = max(at, int(step))
        at += name in found.get(at, {})
        found.setdefault(at, {})[name] = float(value)
    return {step: row for step, row in found.items() if row}


def sent(history: list[dict]) -> dict[int, dict[str, float]]:
    return {row["_step"]: {key: value for key, value in row.items() if not key.startswith("_")} for row in history}


def overrides(csv_folder: Path) -> list[str]:
    return [
        "model=bert_tiny",
        "task=csv",
        *(f"task.{name}_file={csv_folder}/{name}.csv" for name in ("train", "validation", "test")),
        "hardware.precision=32-true",
        "hardware.threads=1",
        "batch_size=8",
        "probe_steps=1",
        "logger=wandb",
    ]


def test_every_run_of_a_parallel_sweep_arrives_once(server: StandIn, cli, csv_folder: Path, tmp_path: Path):
    environment = server.environment() | {"KEEPFRAC_MULTIRUN": str(tmp_path)}
    grid = ["method=nosp,norm", "weight_decay=0.01,1e30", "epochs=1", "name=sweep", "hydra.launcher.n_jobs=2"]
    done = cli("src.main", "-m", *overrides(csv_folder), *grid, **environment)
    assert "2 of 4 cells failed" in done.stderr, done.stdout + done.stderr
    cells = {found["identity"]: (folder, found) for folder, found in results.cells(tmp_path / "sweep")}
    assert len(server.runs) == len(cells) == 4

    for arrived in server.runs.values():
        folder, found = cells[arrived.id.split("-")[0]]
        assert folder.name.startswith(arrived.attributes["displayName"])
        assert arrived.attributes["groupName"] == "sweep"
        assert arrived.attributes["jobType"] == found["config"]["method"]["name"]
        assert arrived.complete
        assert arrived.exit_code == arrived.summary["failed"] == (found["status"] == "failed")
        assert arrived.config["method"] == found["config"]["method"]
        assert arrived.config["weight_decay"] == found["config"]["weight_decay"]
        assert sent(arrived.history) == rows(folder)
        assert arrived.repeats == 0
        if found["status"] == "done":
            assert {key.split("/")[0] for key in arrived.summary if "/" in key} == {*PARTS, "train"}
            assert arrived.summary["test/accuracy"] == found["scores"]["test/accuracy"]
            assert arrived.summary["cost/saved_bytes"] == found["cost"]["saved_bytes"]
        else:
            assert "the loss is" in arrived.summary["error"]

    key = server.key.encode()
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and key in path.read_bytes()]
    assert not [run.id for run in server.runs.values() for upload in run.uploads.values() if key in upload]
    read_back(server, set(cells))


def read_back(server: StandIn, identities: set[str]) -> None:
    """The public interface gives the same figures as arrived."""
    code = """
import json, wandb
runs = wandb.Api().runs("lab/keepfrac", filters={"group": "sweep"})
print(json.dumps({r.id: [r.state, r.config["seed"], [dict(row) for row in r.scan_history()]] for r in runs}))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | server.environment(), capture_output=True, text=True
    )
    read = json.loads(done.stdout.splitlines()[-1])
    assert {run_id.split("-")[0] for run_id in read} == identities
    assert sorted(state for state, _, _ in read.values()) == ["failed", "failed", "finished", "finished"]
    for run_id, (_, seed, history) in read.items():
        assert seed == 0
        assert sent(history) == sent(server.runs[run_id].history)


@pytest.fixture
def streaming(server: StandIn, monkeypatch):
    """This process streams to the stand-in."""
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("KEEPFRAC_WANDB", "")
    wandb.teardown()
    yield server
    wandb_run.finish_wandb(1)
    wandb.teardown()


def start_and_kill(words: list[str], environment: dict[str, str], multirun: Path) -> Path:
    """Kills a run once it has a checkpoint; returns its folder."""
    command = [sys.executable, "-m", "src.main", *words]
    with (multirun / "output").open("w") as output:
        process = subprocess.Popen(
            command, env=os.environ | environment, stdout=output, stderr=output, start_new_session=True
        )
        deadline = time.monotonic() + 120
        while not (found := list(multirun.glob("*/*/resume.ckpt"))):
            assert time.monotonic() < deadline, (multirun / "output").read_text()
            assert process.poll() is None, (multirun / "output").read_text()
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return found[0].parent


@pytest.mark.parametrize("before", ["online", "offline"])
def test_a_killed_run_goes_on_in_the_same_run(streaming: StandIn, composed, csv_folder, tmp_path, before):
    words = ["method=nosp", "checkpoint_every=11", "epochs=12", "name=test", "lr=1e-3", "logger=wandb"]
    multirun = tmp_path / "multirun"
    multirun.mkdir()
    environment = {"KEEPFRAC_MULTIRUN": str(multirun), "WANDB_MODE": before}
    folder = start_and_kill([*overrides(csv_folder), *words], environment, multirun)
    (attempt,) = (path for path in (folder / "wandb").glob("*run-*") if not path.is_symlink())
    run_id = attempt.name.split("-", 2 + (before == "offline"))[-1]
    if before == "online":
        # what the client sends after a quarter of a minute
        early = [{"_step": step, **row} for step, row in rows(folder).items()][:1]
        arrived = streaming.runs[run_id]
        arrived.rows, arrived.summary = {row["_step"]: row for row in early}, dict(early[-1])

    outcome = run(composed(*words))
    assert outcome["status"] == "done"
    (arrived,) = streaming.runs.values()
    assert arrived.id == run_id
    assert (arrived.exit_code, arrived.repeats) == (0, 0)
    assert sent(arrived.history) == rows(folder)
    assert arrived.summary["test/loss"] == outcome["scores"]["test/loss"]


def test_a_run_that_begins_anew_is_a_new_run(streaming: StandIn, composed):
    words = ["method=nosp", "epochs=1", "logger=wandb"]
    for again in range(2):
        outcome = run(composed(*words))
        folder = next(Path(os.environ["KEEPFRAC_MULTIRUN"]).glob("test/nosp*"))
        (folder / "results.json").unlink()
        assert outcome["status"] == "done"
        assert len(streaming.runs) == again + 1
    first, second = streaming.runs.values()
    assert sent(first.history) == sent(second.history)
    assert first.repeats == second.repeats == 0
