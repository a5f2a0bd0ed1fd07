"""The chain of `make gaiic`: what each stage is given, and that it stops where one fails. No stage is run."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="no make here")

STAND_IN = """#!/bin/sh
echo "$GAIIC_DATA: $*" >> "{calls}"
case "$*" in *{fails}*) echo "error: no such thing" >&2; exit 1;; esac
case "$2" in src.main) echo "on the way"; echo "done: at/$(wc -l < "{calls}" | tr -d ' ')";; esac
"""


@pytest.fixture
def road(tmp_path: Path, root: Path):
    """A function from make's variables, and words of a call that fails, to (exit code, calls)."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(root / name, tmp_path / name)
    shutil.copytree(root / ".ci", tmp_path / ".ci")
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)

    def make(*variables: str, fails: str = "nothing at all"):
        calls = tmp_path / "calls"
        calls.unlink(missing_ok=True)
        python.write_text(STAND_IN.format(calls=calls, fails=fails.replace(" ", "\\ ")))
        python.chmod(0o755)
        for mark in (".installed-run", ".installed-baselines"):
            (tmp_path / ".venv" / mark).touch()
        environment = {k: v for k, v in os.environ.items() if "MAKE" not in k and k not in ("SEEDS", "KEEP")}
        done = subprocess.run(
            ["make", "gaiic", *variables], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
        )
        return done.returncode, calls.read_text().splitlines()

    return make


def test_each_stage_goes_on_from_the_one_before(road):
    code, calls = road("SEEDS=0,1", "KEEP=0.5", "DATA_DIR=/some where")
    assert code == 0
    assert all(call.startswith("/some where: -m ") for call in calls)
    calls = [call.partition(": -m ")[2] for call in calls]
    for seed, (pre_training, dense, small) in enumerate((calls[0:3], calls[3:6])):
        assert pre_training == f"src.main hydra.mode=RUN experiment=gaiic_pretrain seed={seed}"
        assert dense == f"src.main hydra.mode=RUN experiment=gaiic seed={seed} model.run=at/{3 * seed + 1}"
        ours = f"experiment=gaiic_prune name=gaiic seed={seed} keep_frac=0.5 model.run=at/{3 * seed + 2}"
        under = f"distill=hidden distill.teacher=at/{3 * seed + 2}"
        assert small == f"src.main hydra.mode=RUN {ours} {under}"
    tables = [call.split()[0] for call in calls[6:]]
    assert tables == ["src.baselines.tfidf"] * 4 + ["src.report", "src.baselines.table"]
    assert calls[-2] == "src.report multirun/gaiic --record"


def test_it_stops_where_a_stage_fails(road):
    code, calls = road(fails="experiment=gaiic seed=0")
    assert code != 0 and len(calls) == 2
    code, calls = road(fails="keep_frac=0.2")
    assert code != 0 and len(calls) == 4
    code, calls = road(fails="--words 2")
    assert code != 0 and "--words 2" in calls[-1]
