"""What a sweep costs beside its runs: `make bench`.

Prints: seconds of a finished sweep of 24 cells called again; seconds from the start of a job to its first step; and
cells per minute with one job at a time against two, on the same cells.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SMALL = ("model=bert_tiny", "task.rows=320", "epochs=1", "logger=csv", "probe_steps=0")


def command(folder: Path, *overrides: str) -> float:
    """Runs the command line with its own multirun folder; returns its seconds."""
    environment = os.environ | {"KEEPFRAC_MULTIRUN": str(folder), "KEEPFRAC_HUB": "offline"}
    given = {word.split("=")[0] for word in overrides}
    small = [word for word in SMALL if word.split("=")[0] not in given]
    begin = time.monotonic()
    subprocess.run([sys.executable, "-m", "src.main", *overrides, *small], cwd=ROOT, env=environment, check=True)
    return time.monotonic() - begin


def test_a_finished_sweep_called_again(tmp_path):
    grid = ("-m", "method=rand,norm,bkrz", "keep_frac=0.1,0.2,0.3,0.5", "seed=0,1", "steps=1", "name=again")
    command(tmp_path, *grid, "hydra.launcher.n_jobs=2")
    assert len(list(tmp_path.glob("again/*/results.json"))) == 24
    seconds = min(command(tmp_path, *grid) for _ in range(3))
    sys.stdout.write(f"\nfinished sweep of 24 cells, called again: {seconds:.1f} s (best of 3)\n")


def test_start_of_a_job_to_its_first_step(tmp_path):
    seconds = []
    for seed in range(3):
        begin = time.time()
        watch = subprocess.Popen(
            [sys.executable, "-m", "src.main", *SMALL, f"seed={seed}", "name=start", "steps=200"],
            cwd=ROOT,
            env=os.environ | {"KEEPFRAC_MULTIRUN": str(tmp_path), "KEEPFRAC_HUB": "offline"},
        )
        while not any('"train"' in path.read_text() for path in tmp_path.glob(f"start/*_s{seed}_*/progress.json")):
            time.sleep(0.02)
        seconds.append(time.time() - begin)
        watch.kill()
        watch.wait()
    sys.stdout.write(f"\nstart of a job to its first step: {min(seconds):.1f} s (best of 3)\n")


def test_two_jobs_at_once_against_one(tmp_path):
    grid = ("-m", "method=nosp", "seed=0,1,2,3", "steps=40")
    model = ("model=minilm",)
    took = {jobs: command(tmp_path, *grid, *model, f"name=j{jobs}", f"hydra.launcher.n_jobs={jobs}") for jobs in (1, 2)}
    ratio = took[1] / took[2]
    sys.stdout.write(
        f"\n4 cells, one at a time {took[1]:.0f} s, two at once {took[2]:.0f} s: {ratio:.2f} x the throughput\n"
    )
