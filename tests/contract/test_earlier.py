"""Runs that an earlier version left are loaded, scored, reported and continued: see tests/fixtures/earlier."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from transformers import AutoModelForSequenceClassification

from keepfrac.run import identity
from keepfrac.run.run import run
from keepfrac.storage.build import build_target
from keepfrac.training.checkpoint import backward_saver_state
from keepfrac.training.checkpoint_files import CHECKPOINT
from tests.runs import weights_of

ROOT = Path(__file__).resolve().parents[2]
LEFT = ROOT / "tests" / "fixtures" / "earlier"
DONE = sorted(path.parent for path in LEFT.glob("*/*/results.json") if path.parent.parent.name != "half")
HALVES = sorted(LEFT.glob("half/*"))
each_done = pytest.mark.parametrize("folder", DONE, ids=lambda folder: folder.name.partition("_k")[0])


@pytest.fixture
def here(monkeypatch, tmp_path):
    """In the root of the project, from which the paths in their configurations go, with a folder of runs of its own."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("KEEPFRAC_MULTIRUN", str(tmp_path))
    identity.register()
    return tmp_path


@pytest.fixture
def onwards(here, shared):
    """A function from a folder and overrides to the outcome of a run that goes on from it, on its own data."""

    def run_(folder: Path, *overrides: str) -> dict:
        files = [f"task.{name}_file={LEFT}/data/{name}.csv" for name in ("train", "validation", "test")]
        words = ("model=from_run", f"model.run={folder}", *files, "method=nosp", "probe_steps=0")
        return run(shared(*words, *overrides))

    return run_


def results_in(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


@each_done
def test_the_delivered_model_loads_where_this_package_is_not_needed(folder):
    own_code = "auto_map" in json.loads((folder / "model" / "config.json").read_text())
    net = AutoModelForSequenceClassification.from_pretrained(folder / "model", trust_remote_code=own_code)
    found = results_in(folder)
    updates = found["kept"].get("trained_params", 0) if found["config"]["method"].get("merge") == "keep" else 0
    own = sum(p.numel() for p in net.parameters())  # without updates that are kept beside their weights
    assert found["size"]["params"] - updates <= own <= found["size"]["params"]


@each_done
def test_it_scores_as_it_did(onwards, folder):
    assert onwards(folder, "epochs=0")["scores"] == pytest.approx(results_in(folder)["scores"], abs=1e-4)


@each_done
def test_another_run_goes_on_from_it(onwards, folder):
    found = onwards(folder, "steps=2")
    assert found["status"] == "done" and found["cost"]["steps"] == 2
    assert found["provenance"]["stages"][-1]["identity"] == results_in(folder)["identity"]


@pytest.mark.parametrize(
    "folder", [*DONE, *HALVES], ids=lambda folder: folder.parent.name + folder.name.partition("_k")[0]
)
def test_its_configuration_names_the_cell_it_named(here, folder):
    cfg = OmegaConf.load(folder / "config.yaml")
    assert identity.cell(cfg).folder.name == folder.name
    settings = identity.plain(cfg)
    targets = [group["_target_"] for group in settings.values() if isinstance(group, dict) and "_target_" in group]
    assert targets and all(target.startswith("src.") and build_target(target) for target in targets)


@pytest.mark.parametrize("half", HALVES, ids=lambda folder: folder.name.partition("_k")[0])
def test_a_half_done_run_goes_on_from_its_checkpoint(here, caplog, half):
    shutil.copytree(half, folder := here / "half" / half.name)
    with caplog.at_level("INFO"):
        found = run(OmegaConf.load(half / "config.yaml"))
    assert "goes on from step 3" in caplog.text
    assert found["status"] == "done" and found["cost"]["steps"] == 8 and not (folder / CHECKPOINT).exists()
    for path in DONE:
        if path.name == half.name:
            assert found["scores"] == pytest.approx(results_in(path)["scores"], abs=1e-4)
            assert found["kept"]["achieved"] == results_in(path)["kept"]["achieved"]


@pytest.mark.parametrize("half", HALVES, ids=lambda folder: folder.name.partition("_k")[0])
def test_it_ends_with_the_weights_of_a_run_that_was_never_interrupted(here, half):
    shutil.copytree(half, here / "half" / half.name)
    resumed = OmegaConf.load(half / "config.yaml")
    whole = OmegaConf.merge(resumed, {"name": "whole"})
    run(resumed), run(whole)
    one, other = weights_of(resumed), weights_of(whole)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("norms", [None, {"keys": [], "norms": []}])
def test_what_a_selection_drew_is_found_within_the_earlier_state_of_a_method(norms):
    selection = {"seed": 1, "step": 3, "seen": {}}
    checkpoint = {"state_dict": {"_extra_state": {"selection": selection, "norms": norms}}}
    assert backward_saver_state(checkpoint) == selection | ({} if norms is None else {"norms": norms})
    assert backward_saver_state({"state_dict": {"_extra_state": {}}}) == {}


def test_the_sweep_is_reported(cli, tmp_path):
    sweep = shutil.copytree(LEFT / "earlier", tmp_path / "earlier")
    done = cli("src.report", str(sweep))
    assert done.returncode == 0, done.stderr
    rows = (sweep / "report.csv").read_text()
    assert all(results_in(path)["config"]["method"]["name"] in rows for path in DONE if path.parent.name == "earlier")


@pytest.mark.parametrize("command", ["src.baselines.tfidf", "src.baselines.table", "src.models.packed"])
def test_a_command_is_found_under_its_earlier_name(cli, command):
    done = cli(command, "--help")
    assert (done.stdout + done.stderr).startswith("usage: "), done.stderr
