"""The commands of the README, typed one after the other, with no network."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TINY = ("model=bert_tiny", "task.rows=64", "epochs=1", "logger=csv", "probe_steps=1", "name=readme")


@pytest.fixture(scope="module")
def typed(root, tmp_path_factory):
    """Returns a function that types a command; all write to one multirun folder."""
    multirun = tmp_path_factory.mktemp("multirun")

    def run(module: str, *words: str) -> subprocess.CompletedProcess:
        environment = os.environ | {"KEEPFRAC_MULTIRUN": str(multirun)}
        command = [sys.executable, "-m", module, *words]
        return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)

    run.multirun = multirun
    return run


def cell(typed, method: str) -> Path:
    (folder,) = typed.multirun.glob(f"readme/{method}_*")
    return folder


def test_a_sweep_ends_and_the_same_command_finds_it_done(typed):
    words = ("-m", "method=nosp,norm", "keep_frac=0.3", *TINY)
    first = typed("src.main", *words)
    assert first.returncode == 0, first.stderr
    assert "[2/2] done" in first.stdout
    again = typed("src.main", *words)
    assert again.returncode == 0 and "everything is done" in again.stdout


def test_a_bad_cell_is_one_line_before_anything_starts(typed):
    done = typed("src.main", "-m", "method=norm", "method.rule=top,typo", *TINY)
    assert done.returncode == 1 and "started" not in done.stdout
    assert "rule='typo'" in done.stderr and len(done.stderr.splitlines()) == 1


def test_the_report_has_a_table_a_picture_and_a_page(typed):
    done = typed("src.report", str(typed.multirun / "readme"))
    assert done.returncode == 0 and "norm" in done.stdout
    written = {path.name for path in (typed.multirun / "readme").iterdir() if path.is_file()}
    assert {"report.md", "report.csv", "report.png", "report.html"} <= written


def test_the_ruler_measures_the_places(typed):
    done = typed("src.measure", str(cell(typed, "norm")), "--sites")
    assert done.returncode == 0 and "cosine_dw" in done.stdout


def test_evaluate_only(typed):
    folder = cell(typed, "nosp")
    words = ("epochs=0", "model=from_run", f"model.run={folder}", "task.rows=64", "logger=null", "name=again")
    done = typed("src.main", *words)
    assert done.returncode == 0, done.stderr
    assert list(typed.multirun.glob("again/*/results.json"))
