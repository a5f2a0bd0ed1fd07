"""Figures on their way to the csv and to W&B's rows; W&B itself is in tests/integration/test_wandb*.py."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from keepfrac.tracking.wandb_run import MetricsFile, Stream, final_figures


def lines(folder: Path) -> list[str]:
    return (folder / "metrics.csv").read_text().splitlines()


def test_the_csv_is_long(tmp_path: Path):
    file = MetricsFile(tmp_path, resumed_at=0)
    file.log_metrics({"train/loss": 0.5, "epoch": 1}, 10)
    file.log_metrics({"val/accuracy": 1})
    assert lines(tmp_path) == ["step,metric,value", "10,train/loss,0.5", "0,val/accuracy,1.0"]


def test_a_resumed_csv_forgets_what_the_killed_attempt_logged_beyond(tmp_path: Path):
    file = MetricsFile(tmp_path, resumed_at=0)
    for step in (10, 20, 30):
        file.log_metrics({"train/loss": float(step)}, step)
    with file.path.open("a") as torn:
        torn.write("40,train/l")
    MetricsFile(tmp_path, resumed_at=21)
    assert lines(tmp_path) == ["step,metric,value", "10,train/loss,10.0", "20,train/loss,20.0"]


@pytest.mark.parametrize("line", ["a note of mine", "x,train/loss,1.0", "11,train/loss,high", "11,train/loss", "=1+1"])
def test_lines_of_someone_else_are_set_aside_with_a_line(tmp_path: Path, caplog, line: str):
    file = MetricsFile(tmp_path, resumed_at=0)
    file.log_metrics({"train/loss": 1.0}, 10)
    with file.path.open("ab") as foreign:
        foreign.write(line.encode() + b" \xff\n")
    file.log_metrics({"train/loss": 2.0}, 20)
    MetricsFile(tmp_path, resumed_at=21)
    assert lines(tmp_path) == ["step,metric,value", "10,train/loss,1.0", "20,train/loss,2.0"]
    assert (tmp_path / "metrics.foreign.txt").read_text().startswith(line)
    assert "set aside in metrics.foreign.txt: 1" in caplog.text


class Recorder:
    """Stands where W&B's run stands: rows by step, as the client merges them."""

    def __init__(self, starting_step: int):
        self.starting_step, self.rows = starting_step, {}

    def log(self, row: dict, step: int) -> None:
        assert step >= max(self.rows, default=0), "W&B drops a step that goes back"
        self.rows.setdefault(step, {}).update(row)


@pytest.fixture
def stream(tmp_path: Path):
    return lambda starting_step=0: Stream(Recorder(starting_step), tmp_path, {}, online=False)


def test_figures_of_a_step_share_a_row_and_repeated_ones_begin_the_next(stream):
    one = stream()
    one.log_metrics({"train/loss": 0.5, "epoch": 0}, 9)
    one.log_metrics({"val/accuracy": 0.7, "val/loss": 0.6}, 12)
    one.log_metrics({"kept/achieved": 0.3}, 12)
    one.log_metrics({"val/accuracy": 0.8, "val/loss": 0.5}, 12)
    one.log_metrics({"test/accuracy": 0.9}, 12)
    assert one.run.rows == {
        9: {"train/loss": 0.5},
        12: {"val/accuracy": 0.7, "val/loss": 0.6, "kept/achieved": 0.3},
        13: {"val/accuracy": 0.8, "val/loss": 0.5, "test/accuracy": 0.9},
    }


def test_what_the_server_has_is_not_sent_again(stream, tmp_path: Path):
    file = MetricsFile(tmp_path, resumed_at=0)
    for step in (10, 20, 30):
        file.log_metrics({"train/loss": float(step), "train/lr": 1.0}, step)
    one = stream(starting_step=11)
    one.replay()
    assert one.run.rows == {step: {"train/loss": float(step), "train/lr": 1.0} for step in (20, 30)}


def test_a_failure_is_said_once(stream, caplog):
    one = stream()
    one.run = SimpleNamespace(starting_step=0)  # which cannot log
    for step in range(3):
        one.log_metrics({"train/loss": 1.0}, step)
    assert len(caplog.records) == 1
    assert "nothing is lost; to upload later: make sync SWEEP=" in caplog.text


def test_final_figures_have_documented_names():
    outcome = {
        "scores": {"val/accuracy": 0.5, "val/loss": 1.0, "test/accuracy": 0.6, "test/loss": 0.9},
        "best_metric": "accuracy",
        "kept": {"asked": 0.3, "unit": "saved activations"},
        "size": {"params": 10},
        "cost": {"peak_bytes": None, "steps": 4},
    }
    assert final_figures(outcome) == outcome["scores"] | {
        "val/score": 0.5,
        "test/score": 0.6,
        "kept/asked": 0.3,
        "size/params": 10,
        "cost/steps": 4,
    }
