"""The workspace as W&B would store it, and its arrival at the stand-in server."""

import json
import re
from pathlib import Path

import pytest

from keepfrac.tracking import wandb_run, workspace
from tests.standin_wandb import StandIn

pytestmark = pytest.mark.filterwarnings("ignore:Pydantic V1 style")  # wandb-workspaces writes it
SNAPSHOT = Path(__file__).with_name("dashboard.json")


def specification(sweep: str | None) -> dict:
    text = workspace.specification(workspace.workspace("lab", "keepfrac", sweep))
    return json.loads(re.sub(r'"__id__": "\w+"', '"__id__": "*"', text))


def test_the_workspace_is_as_recorded():
    """After a wanted change: python -m pytest tests/unit/test_dashboard.py fails, and writes what to compare."""
    found = specification("demo")
    if not SNAPSHOT.exists() or json.loads(SNAPSHOT.read_text()) != found:
        SNAPSHOT.with_suffix(".new.json").write_text(json.dumps(found, indent=1) + "\n")
        pytest.fail(f"{SNAPSHOT.name} differs from {SNAPSHOT.stem}.new.json: rename that if it is what you want")


def test_a_workspace_of_all_sweeps_filters_nothing():
    assert "demo" in json.dumps(specification("demo"))
    assert "demo" not in json.dumps(specification(None))


def test_any_name_of_a_sweep_is_filtered_by():
    name = "it's a\\b, é"
    assert json.dumps(name) in json.dumps(specification(name))


def test_every_name_it_shows_is_one_that_runs_write():
    text = json.dumps(specification("demo"))
    shown = set(re.findall(r'(?:summary:|")((?:train|val|test|loss|kept|cost|size)/\w+)"', text))
    shown |= {name.removeprefix("summary:") for name in workspace.COLUMNS if "/" in name}
    scores = {f"{split}/{name}": 0.5 for split in ("val", "test") for name in ("accuracy", "loss")}
    outcome = {
        "scores": scores,
        "best_metric": "accuracy",
        "kept": {"asked": 0.3, "achieved": 0.3},
        "size": {"nonzeros": 1},
        "cost": {"saved_bytes": 1, "step_seconds": 1.0, "latency_seconds": 1.0},
    }
    written = set(wandb_run.final_figures(outcome)) | {"train/loss"}
    assert shown
    assert shown <= written


@pytest.fixture
def server(monkeypatch):
    with StandIn() as one:
        for name, value in one.environment().items():
            monkeypatch.setenv(name, value)
        yield one
    import wandb

    wandb.teardown()


def test_it_is_saved(server: StandIn, capsys):
    assert workspace.main(["--sweep", "multirun/demo"]) == 0
    (view,) = server.views.values()
    assert (view["entityName"], view["projectName"], view["type"]) == ("lab", "keepfrac", "project-view")
    assert view["displayName"] == "keepfrac: demo"
    stored = json.loads(re.sub(r'"__id__":"\w+"', '"__id__":"*"', view["spec"]))
    assert stored == specification("demo")
    assert capsys.readouterr().out.startswith(f"{server.url}/lab/keepfrac?nw=")


def test_without_a_server_it_says_so_in_one_line(server: StandIn, capsys):
    server.stop()
    assert workspace.main([]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: the workspace is not saved: 127.0.0.1:")
    assert said.count("\n") == 1
