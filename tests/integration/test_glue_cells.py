"""One tiny cell of each task of experiment=finetune_glue, on the made-up rows of the fixtures."""

from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir

from keepfrac.run import identity
from keepfrac.run.run import run

ROOT = Path(__file__).resolve().parents[2]
SWEEP = yaml.safe_load((ROOT / "conf" / "experiment" / "finetune_glue.yaml").read_text())["hydra"]["sweeper"]
TASKS = SWEEP["params"]["task"].split(",")
SCORES = {"stsb": "pearson", "mrpc": "f1", "qqp": "f1", "mnli": "mismatched_accuracy"}  # beside the others' accuracy


def test_the_sweep_is_the_originals():
    assert len(TASKS) == 8 and SWEEP["params"]["lr"].split(",") == ["2e-5", "3e-5", "4e-5", "5e-5"]


@pytest.mark.parametrize("task", TASKS)
def test_a_cell_of_each_task(tmp_path, monkeypatch, task):
    monkeypatch.setenv("KEEPFRAC_MULTIRUN", str(tmp_path))
    monkeypatch.setenv("GLUE_DATA", str(ROOT / "tests" / "fixtures" / "glue"))
    identity.register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        tiny = ["model=bert_tiny", "steps=2", "batch_size=8", "probe_steps=0", "logger=csv", "lr=2e-5"]
        cell = ["experiment=finetune_glue", f"task={task}", "hardware.precision=32-true", "hardware.threads=1"]
        found = run(compose("config", overrides=[*cell, *tiny]))
    assert found["status"] == "done" and found["cost"]["steps"] == 2
    assert f"test/{SCORES.get(task, 'accuracy')}" in found["scores"]
    assert f"val/{found['best_metric']}" in found["scores"]
