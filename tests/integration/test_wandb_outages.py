"""W&B out of reach, by the real client: runs go on, say how to upload later, and lose nothing."""

import contextlib
import gc
import logging
import os
import re
import subprocess
import time
from pathlib import Path

import pytest
import wandb

from keepfrac.tracking import sync, wandb_run
from tests.standin_wandb import KEY, StandIn

CONFIG = {"name": "test", "method": {"name": "nosp"}, "task": {"name": "csv"}, "model": {"name": "tiny"}}
SETTINGS = {"project": "keepfrac", "entity": None}
FIGURES = [{"train/loss": 1.0 / step} for step in range(1, 7)]


@pytest.fixture
def server():
    with StandIn() as one:
        yield one
        assert one.unknown == []


@pytest.fixture
def reach(server: StandIn, monkeypatch, tmp_path):
    """`reach(WANDB_API_KEY=None)`: this process now streams to the stand-in, with that much changed."""

    def change(**changes: str | None) -> None:
        wanted = server.environment() | {"KEEPFRAC_WANDB": None, "NETRC": str(tmp_path / "netrc")} | changes
        for name, value in wanted.items():
            monkeypatch.setenv(name, value or "")  # first, so that what a test changes is put back
            if value is None:
                monkeypatch.delenv(name)
        wandb.teardown()

    yield change
    wandb_run.finish_wandb(1)
    with contextlib.suppress(ConnectionResetError):  # where the client was killed
        wandb.teardown()


def cell(tmp_path: Path) -> Path:
    folder = tmp_path / "multirun" / "test" / "cell"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def begin(folder: Path, resumed_at: int = 0) -> tuple[wandb_run.MetricsFile, wandb_run.Stream | None]:
    file = wandb_run.MetricsFile(folder, resumed_at)
    return file, wandb_run.wandb_logger(folder, SETTINGS, CONFIG, "0123456789ab", "nosp", resumed_at)


def log(loggers, first: int = 1) -> None:
    for step, row in list(enumerate(FIGURES, start=1))[first - 1 :]:
        for logger in loggers:
            logger.log_metrics(row, step)


def steps(server: StandIn) -> list[int]:
    (arrived,) = server.runs.values()
    assert [row["train/loss"] for row in arrived.history] == [
        FIGURES[row["_step"] - 1]["train/loss"] for row in arrived.history
    ]
    return [row["_step"] for row in arrived.history]


WRONG = "local-" + "f" * 48
OUTAGES = {
    "no server": ({}, lambda server: server.stop(), "does not answer"),
    "a server that hangs": ({}, lambda server: server.hangs.set(), "does not answer within 3 s"),
    "a wrong key": ({"WANDB_API_KEY": WRONG}, lambda server: None, "refuses the key (HTTP 401)"),
    "a key that is none": ({"WANDB_API_KEY": "abc"}, lambda server: None, "refuses the key"),
    "no key": ({"WANDB_API_KEY": None}, lambda server: None, "no key is configured"),
    "no right to the project": ({}, lambda server: setattr(server, "forbids", True), "permission denied"),
}


@pytest.mark.parametrize("outage", OUTAGES)
def test_a_run_without_a_server_is_kept_and_uploads_later(server, reach, tmp_path, caplog, capsys, outage):
    changes, strike, reason = OUTAGES[outage]
    reach(**changes)
    strike(server)
    begun = time.monotonic()
    with caplog.at_level(logging.INFO, logger="keepfrac.tracking.wandb_run"):
        loggers = begin(cell(tmp_path))
    assert time.monotonic() - begun < 20  # seconds, on a busy machine
    (told,) = (record.getMessage() for record in caplog.records if record.name == "keepfrac.tracking.wandb_run")
    assert told.startswith("W&B: offline (")
    assert reason in told
    assert f"make sync SWEEP={cell(tmp_path).parent}" in told
    log(loggers)
    wandb_run.finish_wandb(0)
    assert server.runs == {}

    reach(KEEPFRAC_WANDB="offline")  # as a sweep left it: an upload asks anew
    server.forbids = False
    server.start()
    assert sync.main([str(cell(tmp_path).parent)]) == 0
    assert "uploaded" in capsys.readouterr().out
    assert steps(server) == [1, 2, 3, 4, 5, 6]
    (arrived,) = server.runs.values()
    assert (arrived.exit_code, arrived.attributes["groupName"]) == (0, "test")
    assert sync.main([str(cell(tmp_path).parent)]) == 0
    assert capsys.readouterr().out == "everything is uploaded\n"
    secrets = (KEY.encode(), WRONG.encode())
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(secret in text for secret in secrets for text in files)


def test_a_server_that_dies_in_the_middle(server, reach, tmp_path, caplog, capsys):
    reach(WANDB_FINISH_TIMEOUT="3")
    loggers = begin(cell(tmp_path))
    log(loggers)
    server.stop()
    begun = time.monotonic()
    wandb_run.finish_wandb(0)
    assert time.monotonic() - begun < 15
    assert "nothing is lost; to upload later: make sync SWEEP=" in caplog.text
    assert sync.main([str(cell(tmp_path))]) == 1
    assert re.search(r"^1 runs wait, and 127.0.0.1:\d+ does not answer", capsys.readouterr().out)

    reach()
    server.start()
    assert sync.main([str(cell(tmp_path))]) == 0
    assert steps(server) == [1, 2, 3, 4, 5, 6]


def test_an_online_run_is_marked_as_sent(server, reach, tmp_path, capsys):
    reach()
    log(begin(cell(tmp_path)))
    wandb_run.finish_wandb(0)
    assert steps(server) == [1, 2, 3, 4, 5, 6]
    assert sync.main([str(cell(tmp_path))]) == 0
    assert capsys.readouterr().out == "everything is uploaded\n"


def test_an_attempt_that_goes_on_offline_uploads_whole(server, reach, tmp_path):
    reach()
    file, stream = begin(cell(tmp_path))
    log([file, stream])
    wandb_run.finish_wandb(1)
    reach(WANDB_MODE="offline")
    log(begin(cell(tmp_path), resumed_at=4), first=4)
    wandb_run.finish_wandb(0)
    server.runs.clear()  # so that only what the second attempt holds is seen
    reach()
    assert sync.main([str(cell(tmp_path))]) == 0
    assert steps(server) == [1, 2, 3, 4, 5, 6]
    assert list(server.runs) == [stream.run.id]


def kill_client() -> None:
    """Kills the process that the client started, and reaps it: the client that lost it never does."""
    lines = [path.read_text() for path in Path("/proc").glob("[0-9]*/stat")]
    (pid,) = (line.split()[0] for line in lines if "(wandb-core) " in line and f") S {os.getpid()} " in line)
    processes = [one for one in gc.get_objects() if type(one) is subprocess.Popen]
    (client,) = (one for one in processes if one.pid == int(pid) and one.returncode is None)
    client.kill()
    client.wait()


def test_a_client_that_is_killed_ends_no_run(server, reach, tmp_path, caplog):
    reach()
    loggers = begin(cell(tmp_path))
    log(loggers)
    kill_client()
    loggers[0].log_metrics({"val/score": 0.5}, 7)
    loggers[1].log_metrics({"val/score": 0.5}, 7)
    loggers[1].summarise({"test/score": 0.25})
    wandb_run.finish_wandb(0)
    assert caplog.text.count("nothing is lost") == 1
    assert sync.main([str(cell(tmp_path))]) == 0
    (arrived,) = server.runs.values()
    assert [row["_step"] for row in arrived.history] == [1, 2, 3, 4, 5, 6, 7]
    assert (arrived.summary["test/score"], arrived.exit_code) == (0.25, 0)


def test_a_sweep_asks_an_absent_server_once(server, reach, tmp_path):
    reach()
    server.hangs.set()
    told = sync.resolve_wandb(tmp_path)
    assert told.startswith("W&B: offline (127.0.0.1:")
    assert os.environ["KEEPFRAC_WANDB"] == "offline"
    begun = time.monotonic()
    assert [sync.decide()[0] for _ in range(100)] == ["offline"] * 100
    assert time.monotonic() - begun < 1
    assert server.num_connections == 1
