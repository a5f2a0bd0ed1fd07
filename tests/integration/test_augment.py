"""Runs on augmented rows: more of them in training, the same in validation and test, and the same every time."""

import json

import pytest
import torch
from safetensors.torch import load_file

from keepfrac.augmentation import maker
from keepfrac.errors import UserError
from keepfrac.run import identity
from keepfrac.run.build import build_task
from keepfrac.run.run import run
from keepfrac.storage.build import build

QUICK = ("augment=tinybert", "augment.times=2", "epochs=1", "probe_steps=0")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def weights(cfg) -> dict:
    return load_file(identity.cell(cfg).folder / "model" / "model.safetensors")


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_training_has_more_rows_and_nothing_else_has(composed, monkeypatch):
    cfg = composed(*QUICK)
    results = run(cfg)
    data = results["provenance"]["data"]
    account, rows = data["augmented"], data["rows"]
    assert (rows["val"], rows["test"]) == (32, 32)
    assert account["rows_before"] == 96 and account["rows_after"] == rows["train"] > 200
    assert account["times"] == 2 and account["words"]["neighbours"] > 0
    assert results["cost"]["steps"] == rows["train"] // 8
    assert json.loads((identity.cell(cfg).folder / "results.json").read_text())["status"] == "done"
    warm = composed(*QUICK, "name=warm")
    monkeypatch.setattr(maker, "load_masked_lm", lambda folder: pytest.fail("loaded again"))
    run(warm)
    assert equal(weights(cfg), weights(warm))  # whether or not the cache had it


def test_two_processes_train_on_what_the_first_made(composed, monkeypatch):
    cfg = composed(*QUICK, "hardware=cpus", "steps=3")
    data = run(cfg)["provenance"]["data"]
    settings = identity.plain(cfg)
    monkeypatch.setattr(maker, "load_masked_lm", lambda folder: pytest.fail("loaded again"))
    train = build_task(identity.check(settings)).splits.train
    rows, _ = build(settings["augment"])(
        train, task="csv", leads=True, device="cpu", bf16=False, report_progress=lambda done, of: None
    )
    assert data["rows"]["train"] == data["augmented"]["rows_after"] == len(rows)


def test_evaluating_alone_augments_nothing(composed):
    assert "augmented" not in run(composed(*QUICK, "epochs=0"))["provenance"]["data"]


def test_cells_without_augmentation_are_who_they_were(composed):
    settings = identity.plain(composed())
    former = {key: value for key, value in settings.items() if key != "augment"}
    assert identity.identify(settings) == identity.identify(former)
    others = [composed(*QUICK), composed(*QUICK, "augment.p=0.5"), composed(*QUICK, "seed=1")]
    assert len({identity.identify(identity.plain(cfg)) for cfg in others} | {identity.identify(settings)}) == 4


def test_by_the_command_line(cli, csv_folder):
    base = ["model=bert_tiny", "task=csv", f"task.train_file={csv_folder}/train.csv", "logger=csv", "steps=1"]
    done = cli("src.main", *base, "augment=tinybert", "augment.times=2", "probe_steps=0")
    assert done.returncode == 0, done.stderr
    assert "no masked-LM head" in done.stdout and "training rows became" in done.stdout


def test_a_malformed_glove_file_fails_the_run_with_its_line(composed, tmp_path):
    (tmp_path / "glove.txt").write_text("film 1 0\nsong 1\n")
    cfg = composed(*QUICK, f"augment.glove={tmp_path}/glove.txt")
    with pytest.raises(UserError, match="line 2: 2 fields, where a word and 2 numbers must stand"):
        run(cfg)
    assert json.loads((identity.cell(cfg).folder / "results.json").read_text())["status"] == "failed"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("augment.times=0", "augment.times=0: must be a whole number >= 1 and < 2\\^32, or null"),
        ("augment.times=2.5", "augment.times=2.5"),
        ("augment.p=1.5", r"augment.p=1.5: must be a number in \[0, 1\]"),
        ("augment.p=-0.1", "augment.p=-0.1"),
        ("augment.words=all", "one of auto, masked_lm, neighbours"),
        ("augment.glove=gone.txt", "augment.glove=gone.txt: cannot be read"),
        ("augment.model=nobody/nothing", "nobody/nothing"),
    ],
)
def test_bad_settings_are_found_before_anything_runs(composed, overrides, message):
    package = ("augment.package=null",) if "model" in overrides else ()
    with pytest.raises(UserError, match=message):
        identity.cell(composed("augment=tinybert", overrides, *package))
