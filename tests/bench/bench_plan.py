"""What it costs to plan a sweep, and to type a finished one again: `python -m tests.bench.bench_plan [CELLS ...]`.

Prints, for 10, 100 and 1,000 cells, the seconds from the command to the line that announces the plan, where nothing is
done, and the seconds of the whole command, where everything is; in brackets those of a core, which other work on the
machine does not change. Results are written without a run.
"""

import itertools
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from keepfrac.run import identity
from keepfrac.storage import results

ROOT = Path(__file__).resolve().parents[2]
METHODS, KEEP, LR = ("rand", "norm", "bkrz", "wta", "late"), (0.1, 0.2, 0.3, 0.5), (1e-5, 2e-5, 3e-5, 4e-5, 5e-5)
AXES = {
    10: {"method": METHODS, "seed": range(2)},
    100: {"method": METHODS, "keep_frac": KEEP, "lr": LR, "seed": range(1)},
    1000: {"method": METHODS, "keep_frac": KEEP, "lr": LR, "seed": range(10)},
}
FIXED = ("model=bert_tiny", "task=rotten_tomatoes", "logger=csv", "hardware.precision=32-true")


def command(name: str, axes: dict) -> list[str]:
    """Returns the command line of a sweep."""
    words = [f"{key}={','.join(map(str, values))}" for key, values in axes.items()]
    return [sys.executable, "-m", "src.main", "-m", *words, *FIXED, f"name={name}"]


def finish(name: str, axes: dict) -> None:
    """Writes what the finished runs of a sweep would leave."""
    identity.register()
    rest = {key: values for key, values in axes.items() if key != "method"}
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        for method in axes["method"]:
            cfg = compose("config", overrides=[f"method={method}", *FIXED, f"name={name}"])
            for values in itertools.product(*rest.values()):
                for key, value in zip(rest, values, strict=True):
                    OmegaConf.update(cfg, key, value)
                settings, cell = identity.check(cfg), identity.cell(cfg)
                results.write(cell.folder, _record(settings.plain(), cell))


def _record(config: dict, cell: identity.Cell) -> dict:
    scores = {f"{split}/{name}": 0.75 for split in ("val", "test") for name in ("accuracy", "f1", "loss")}
    cost = dict.fromkeys(("saved_bytes", "saved_bytes_dense", "step_seconds", "step_seconds_dense"), 1.0)
    made = {"seconds": 1.0, "started": "2025-01-02T03:04:05+00:00", "data": {"rows": {"train": 1, "val": 1, "test": 1}}}
    done = {"status": "done", "error": None, "identity": cell.identity, "config": config, "provenance": made}
    return done | {"best_metric": "accuracy", "direction": "max", "scores": scores, "kept": {}, "cost": cost}


def used() -> float:
    """Returns the seconds of a core that ended children of this process have used."""
    times = resource.getrusage(resource.RUSAGE_CHILDREN)
    return times.ru_utime + times.ru_stime


def planned(line: list[str]) -> str:
    """Returns the seconds until a sweep says what it will run; it runs nothing of it to an end."""
    begin, before = time.monotonic(), used()
    with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        told = next((text for text in process.stdout if " cells, " in text), None)
        seconds = time.monotonic() - begin
        process.kill()
    assert told is not None
    return f"{seconds:.1f} s ({used() - before:.1f} s)"


def typed_again(line: list[str]) -> str:
    """Returns the seconds of a command whose cells are all done."""
    begin, before = time.monotonic(), used()
    output = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "everything is done" in output, output
    return f"{time.monotonic() - begin:.1f} s ({used() - before:.1f} s)"


def main(sizes: list[int]) -> None:
    """Measures sweeps of some sizes."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"KEEPFRAC_MULTIRUN": folder, "KEEPFRAC_HUB": "offline", "OMP_NUM_THREADS": "1"}
        for size in sizes:
            plan = planned(command(f"planned{size}", AXES[size]))
            finish(f"done{size}", AXES[size])
            again = typed_again(command(f"done{size}", AXES[size]))
            sys.stdout.write(f"{size} cells: planned in {plan}, typed again in {again}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]] or list(AXES))
