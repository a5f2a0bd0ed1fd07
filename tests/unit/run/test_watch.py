"""The lines that tell how far a run is."""

import logging
from types import SimpleNamespace

import pytest
import torch

from keepfrac.run.watch import Watch, in_words


def followed(steps: int, start: int = 0) -> Watch:
    watch = Watch(steps, "val/accuracy")
    trainer = SimpleNamespace(global_step=start, is_global_zero=True, callback_metrics={})
    watch.on_train_start(trainer, None)
    for step in range(start, steps):
        trainer.global_step = step + 1
        for _ in range(2):  # of two accumulated batches
            watch.on_train_batch_end(trainer, None, {"loss": torch.tensor(0.5)}, None, 0)
        trainer.callback_metrics = {"val/accuracy": torch.tensor(0.75)}
        watch.on_validation_end(trainer, None)
    watch.on_train_end(trainer, None)
    return watch


def test_elsewhere_than_in_a_terminal_ten_lines_tell_it_all(caplog, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: False)
    with caplog.at_level(logging.INFO):
        followed(50)
    lines = [record.message for record in caplog.records]
    assert len(lines) == 10
    assert lines[1].startswith("step 10 of 50, loss 0.5000, val/accuracy 0.7500, ") and lines[1].endswith(" left")


@pytest.mark.parametrize("steps", [1, 3])
def test_a_short_run_has_a_line_a_step(caplog, monkeypatch, steps):
    monkeypatch.setattr("sys.stdout.isatty", lambda: False)
    with caplog.at_level(logging.INFO):
        followed(steps)
    assert len(caplog.records) == steps


def test_a_terminal_has_a_bar_and_no_lines(caplog, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.delenv("KEEPFRAC_JOB", raising=False)
    with caplog.at_level(logging.INFO):
        assert followed(20, start=5)._bar is None  # it is gone at the end
    assert not caplog.records


def test_times_in_words():
    assert [in_words(seconds) for seconds in (5.4, 65, 3723)] == ["0:00:05", "0:01:05", "1:02:03"]
