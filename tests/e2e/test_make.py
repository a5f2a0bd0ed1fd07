"""What the Makefile says and how it translates variables; nothing is installed or trained here."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FILES = ("Makefile", "pyproject.toml", ".ci")
OURS = ("PYTHON", "TORCH_INDEX", "TASKS", "METHODS", "KEEP", "LR", "SEEDS", "MODEL", "DATA_DIR", "ROWS", "JOBS", "FULL")
TARGETS = ("install", "demo", "sweep-glue", "test", "lint", "bench", "clean")

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="no make here")


@pytest.fixture
def fresh(tmp_path: Path, root: Path) -> Path:
    """The set-up files alone, without .venv, in a folder whose name has a space."""
    folder = tmp_path / "a clone"
    folder.mkdir()
    for name in FILES:
        source = root / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)
    return folder


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name not in OURS and "MAKE" not in name}
    return subprocess.run(["make", *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=60)


def sweep(folder: Path, *variables: str) -> str:
    done = make(folder, "-n", "sweep-glue", *variables)
    assert done.returncode == 0, done.stderr
    return shlex.join(shlex.split(done.stdout.splitlines()[-1]))


def stub(folder: Path, refuse: str) -> Path:
    """A python that fails when its arguments contain `refuse`, and is the real one otherwise."""
    path = folder / "stub-python"
    path.write_text(f'#!/bin/sh\ncase "$*" in *{refuse}*) exit 1;; esac\nexec "{sys.executable}" "$@"\n')
    path.chmod(0o755)
    return path


def test_bare_make_lists_the_targets(fresh: Path):
    done = make(fresh)
    assert done.returncode == 0
    listed = {line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ") and line.split()}
    assert set(TARGETS) <= listed
    assert not (fresh / ".venv").exists()


def test_every_listed_target_has_a_recipe(fresh: Path):
    for target in TARGETS:
        assert make(fresh, "-n", target).returncode == 0, target


def test_a_misspelt_variable_is_an_error(fresh: Path):
    done = make(fresh, "-n", "sweep-glue", "TASK=mrpc")
    assert done.returncode != 0
    assert "unknown variable TASK" in done.stderr
    assert "TASKS" in done.stderr


@pytest.mark.parametrize(
    ("python", "says"),
    [
        ("no-such-python", "PYTHON=no-such-python is no command here; Python 3.11 or newer is needed"),
        ("version_info", "older than Python 3.11"),
        ("ensurepip", "apt install python3-venv"),
    ],
)
def test_what_the_machine_lacks_is_one_line(fresh: Path, tmp_path: Path, python: str, says: str):
    if not python.startswith("no-such"):
        python = str(stub(tmp_path, refuse=python))
    done = make(fresh, "install", f"PYTHON={python}")
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if not line.startswith("make:")]
    assert len(lines) == 1
    assert says in lines[0]
    assert not (fresh / ".venv").exists()


def test_sweep_glue_without_variables_is_the_experiment(fresh: Path):
    assert sweep(fresh) == ".venv/bin/python -m src.main experiment=sweep_glue"


@pytest.mark.parametrize(
    ("variable", "override"),
    [
        ("TASKS=mrpc,sst2", "task=mrpc,sst2"),
        ("TASKS=mrpc sst2", "task=mrpc,sst2"),
        ("METHODS=nosp, norm", "method=nosp,norm"),
        ("KEEP=0.1,0.3", "keep_frac=0.1,0.3"),
        ("LR=2e-5,5e-5", "lr=2e-5,5e-5"),
        ("SEEDS=1,2,3", "seed=1,2,3"),
        ("MODEL=bert_base", "model=bert_base"),
        ("ROWS=2000", "task.rows=2000"),
        ("JOBS=2", "hydra.launcher.n_jobs=2"),
    ],
)
def test_sweep_glue_translates_each_variable(fresh: Path, variable: str, override: str):
    assert sweep(fresh, variable) == f".venv/bin/python -m src.main experiment=sweep_glue {override}"


def test_data_dir_reaches_the_sweep_as_the_users_glue_folder(fresh: Path):
    command = sweep(fresh, "DATA_DIR=/data/my glue")
    assert command == "'GLUE_DATA=/data/my glue' .venv/bin/python -m src.main experiment=sweep_glue"


@pytest.mark.parametrize(("full", "experiment"), [("1", "sweep_glue_full"), ("0", "sweep_glue"), ("", "sweep_glue")])
def test_full_chooses_the_whole_grid(fresh: Path, full: str, experiment: str):
    assert sweep(fresh, f"FULL={full}").endswith(f"experiment={experiment}")


def test_the_experiments_that_make_names_exist(root: Path):
    for name in ("demo", "sweep_glue", "sweep_glue_full"):
        assert (root / "conf" / "experiment" / f"{name}.yaml").is_file(), name


def test_demo_prints_the_expected_time(root: Path):
    done = make(root, "-n", "demo")
    assert "conf/experiment/demo.yaml" in done.stdout
    header = (root / "conf" / "experiment" / "demo.yaml").read_text().splitlines()
    assert any(line.lower().startswith("# time:") for line in header)
