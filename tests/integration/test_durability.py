"""What a run leaves is whole, the same for the same cell, and what it says of itself; what a kill leaves is tidied."""

import shutil
from pathlib import Path

import pytest
import torch

from keepfrac.run.run import run
from keepfrac.tracking.wandb_run import MetricsFile
from keepfrac.training.checkpoint import BEST, Checkpoints
from keepfrac.training.checkpoint_files import CHECKPOINT, DAMAGED
from tests.runs import Killed, check_same, figures, folder_of, killed_at, results_of, steps_of, weights_of

QUICK = ("method=nosp", "probe_steps=0")


@pytest.mark.parametrize(
    ("words", "seen"), [(("steps=3", "eval_every=9"), 1), (("steps=13",), 2), (("steps=4", "eval_every=2"), 2)]
)
def test_the_last_step_is_validated_and_once(composed, words, seen):
    cfg = composed(*QUICK, *words)
    result = run(cfg)
    accuracies = figures(folder_of(cfg))["val/accuracy"]
    assert len(accuracies) == seen + 1  # and that of the delivered model
    best = accuracies.index(max(accuracies[:-1]))
    assert result["scores"]["val/accuracy"] == pytest.approx(max(accuracies))
    if best == seen - 1:
        assert result["cost"]["best_step"] == result["cost"]["steps"]


@pytest.fixture
def whole(composed):
    cfg = composed(*QUICK, *EVERY_OTHER, "name=whole")
    run(cfg)
    return cfg


EVERY_OTHER = ("steps=6", "eval_every=2", "checkpoint_every=1", "model.dropout=0.1")


@pytest.mark.parametrize("harm", ["gone", "empty", "cut"])
def test_without_the_best_weights_a_killed_run_begins_anew_and_says_so(composed, whole, caplog, harm):
    cfg = composed(*QUICK, *EVERY_OTHER, "name=broken")
    with killed_at(4):
        run(cfg)
    best = folder_of(cfg) / BEST
    half = best.read_bytes()[: best.stat().st_size // 2]
    best.unlink() if harm == "gone" else best.write_bytes(b"" if harm == "empty" else half)
    run(cfg)
    assert f"{best} is {'gone' if harm == 'gone' else 'damaged'}: the run starts again" in caplog.text
    assert not {CHECKPOINT, BEST, DAMAGED} & {path.name for path in folder_of(cfg).iterdir()}
    check_equal(whole, cfg)


def test_a_kill_between_a_checkpoint_and_the_figures_of_its_step_loses_none(composed, monkeypatch):
    words = ("steps=11", "checkpoint_every=10")
    one, other = (composed(*QUICK, *words, f"name={name}") for name in ("one", "other"))
    run(one)
    log_metrics = MetricsFile.log_metrics

    def killed(self, metrics, step=None):
        if step == 9 and "train/loss" in metrics:
            raise Killed
        log_metrics(self, metrics, step)

    monkeypatch.setattr(MetricsFile, "log_metrics", killed)
    with pytest.raises(Killed):
        run(other)
    monkeypatch.setattr(MetricsFile, "log_metrics", log_metrics)
    run(other)
    check_same(one, other)
    assert ["9", "train/loss"] in steps_of(other) and ["10", "train/loss"] in steps_of(other)


def check_equal(whole, cfg) -> None:
    one, two = weights_of(whole), weights_of(cfg)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert results_of(whole)["scores"] == results_of(cfg)["scores"]


def test_the_best_weights_say_which_they_are(tmp_path):
    """Those of a killed attempt may be of a step after its last checkpoint."""
    torch.save({"step": 20, "score": 0.75, "weights": torch.nn.Linear(2, 2).state_dict()}, tmp_path / BEST)
    found = Checkpoints(tmp_path, 5, "val/accuracy", "max")
    found.load_state_dict({"best": 0.5, "best_step": 10, "seconds": 1.0})
    assert (found.best, found.best_step) == (0.75, 20)
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / BEST)  # as version 0.1.0 did
    found.load_state_dict({"best": 0.5, "best_step": 10, "seconds": 1.0})
    assert (found.best, found.best_step) == (0.5, 10)
    found.load_best(torch.nn.Linear(2, 2))


def test_a_finished_cell_without_its_model_runs_again_and_says_why(composed, caplog, monkeypatch):
    cfg = composed(*QUICK, "steps=2")
    first, folder = run(cfg), folder_of(cfg)
    assert {"model/model.safetensors", "model/config.json", "model/tokenizer.json"} <= set(first["delivered"])
    for name in (CHECKPOINT, BEST, ".progress.json.1234", ".best.pt.77"):
        (folder / name).write_text("of a kill")
    weights = folder / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert run(cfg)["scores"] == first["scores"]
    assert "was done, but model/model.safetensors is not what the run delivered: it runs again" in caplog.text
    shutil.rmtree(folder / "model")
    assert run(cfg)["scores"] == first["scores"] and weights.exists()
    assert "model/config.json is gone" in caplog.text
    (folder / BEST).write_text("of a kill after the last word")
    (folder / ".results.json.ab12cd_4").mkdir()
    monkeypatch.setattr("keepfrac.run.run._execute", lambda *_: pytest.fail("ran again"))
    run(cfg)
    assert {path.name for path in folder.iterdir()} == {
        ".lock", "config.yaml", "metrics.csv", "model", "progress.json", "results.json", "run.log",
    }  # fmt: skip


@pytest.mark.parametrize(
    "model", [("model=bert_tiny",), ("model.tokenizer={kind: words, size: 60, min_count: 1, lowercase: true}",)]
)
def test_a_delivered_folder_is_the_same_with_a_cold_and_a_warm_cache(composed, tmp_path, monkeypatch, model):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cold, warm = (composed(*QUICK, "steps=1", *model, f"name={name}") for name in ("cold", "warm"))
    run(cold)
    assert list((tmp_path / "cache").rglob("*.npy"))
    run(warm)
    one, two = (contents(folder_of(cfg) / "model") for cfg in (cold, warm))
    assert one == two


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
