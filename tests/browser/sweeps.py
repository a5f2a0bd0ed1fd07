"""Synthetic sweeps as runs leave them: numbers from formulas, the same at every call."""

import math
import random
from pathlib import Path

from keepfrac.storage import results

MIB = 2**20
METHODS = {"nosp": 0.0, "rand": 0.030, "norm": 0.016, "bkrz": 0.010}  # what a method loses at keep 0.1
NASTY = "<script>document.title='owned'</script> \"quoted\" 'single' <b>bold</b> &amp; </script><!--"
SECRET = "hunter2hunter2hunter2"


def run(task: str, method: str, keep: float, seed: int, model="all-MiniLM-L6-v2", **changes) -> dict:
    """The content of the results.json of a finished run; `changes` replaces parts by their dotted name."""
    keep = 1.0 if method == "nosp" else keep
    noise = random.Random(f"{task} {method} {keep} {seed} {model}")
    loss = METHODS[method] * math.log(1 / keep) / math.log(10)
    score = {"sst2": 0.902, "mrpc": 0.853}.get(task, 0.78) - loss + noise.gauss(0, 0.004)
    dense = 46 * MIB
    words = f"task={task} method={method} keep_frac={keep} seed={seed} lr=5e-05 name=demo"
    content = {
        "status": "done",
        "error": None,
        "identity": f"{noise.getrandbits(48):012x}",
        "config": {
            "name": "demo", "seed": seed, "lr": 5e-5, "epochs": 3, "batch_size": 32, "keep_frac": keep,
            "method": {"name": method, "keep_frac": keep, "sites": ["linear"]},
            "model": {"name": f"sentence-transformers/{model}"},
            "task": {"name": task, "rows": 2000, "max_length": 128},
        },
        "provenance": {
            "git_sha": "0123456789abcdef0123456789abcdef01234567", "git_dirty": False, "device": "AMD EPYC, 2 cores",
            "precision": "bf16-mixed", "started": "2026-01-02T03:04:05+00:00", "seconds": 90.0, "seed": seed,
            "versions": {"torch": "2.13.0+cpu", "transformers": "5.23.0"},
            "argv": words.split(), "command": f"python -m src.main {words}",
            "data": {"rows": {"train": 2000, "val": 400, "test": 872}},
        },
        "best_metric": "accuracy",
        "direction": "max",
        "scores": {"val/accuracy": score + 0.005, "test/accuracy": score, "test/f1": score - 0.01, "test/loss": 0.4},
        "kept": {"asked": keep, "achieved": keep, "unit": "saved activations", "of": "columns of 36 linears"},
        "size": {"params": 22_713_728, "nonzeros": 22_713_600},
        "cost": {
            "saved_bytes": int(dense * (0.55 + 0.45 * keep) * (1 + (0.02 if method == "bkrz" else 0))),
            "saved_bytes_dense": dense,
            "step_seconds": 0.21 * (1 + (0.9 if method == "bkrz" else 0.08 * keep)) * (1 + noise.gauss(0, 0.02)),
            "step_seconds_dense": 0.21, "train_seconds": 71.4, "steps": 300, "probe": "32 x 59 tokens",
        },
    }  # fmt: skip
    for name, value in changes.items():
        *path, leaf = name.split(".")
        part = content
        for key in path:
            part = part[key]
        part[leaf] = value
    return content


def leave(folder: Path, content: dict, log: str = "begun\ndone\n") -> Path:
    """Writes a run's folder: results.json, metrics.csv, run.log."""
    folder.mkdir(parents=True, exist_ok=True)
    results.write(folder, content)
    noise = random.Random(content["identity"])
    lines = ["step,metric,value"]
    for step in range(300):
        lines.append(f"{step},train/loss,{0.2 + 0.5 * math.exp(-step / 60) + noise.gauss(0, 0.03):.5f}")
        if step % 50 == 49:
            gained = 0.3 * math.exp(-step / 50)
            lines.append(f"{step},val/accuracy,{content['scores'].get('val/accuracy', 0.5) - gained:.5f}")
            lines.append(f"{step},kept/achieved,{content['kept'].get('achieved', 1.0)}")
    lines += ["300,val/accuracy,0.1", "300,test/accuracy,0.1"]
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "run.log").write_text(log, encoding="utf-8")
    return folder


def large(folder: Path) -> Path:
    """42 finished runs: two tasks, four methods, two keeps, three seeds; one that failed, one that still runs."""
    for task in ("rotten_tomatoes", "sst2"):
        for seed in (0, 1, 2):
            for method, keep in [("nosp", 1.0), *((m, k) for m in METHODS if m != "nosp" for k in (0.1, 0.3))]:
                content = run(task, method, keep, seed)
                leave(folder / f"{method}_k{keep}_lr5e-05_s{seed}_{task}_minilm-{content['identity'][:8]}", content)
    trace = (
        "Traceback (most recent call last):\n"
        '  File "/home/me/keepfrac/src/run.py", line 64, in _guarded\n'
        "RuntimeError: DataLoader worker (pid 4711) is killed by signal: Killed.\n"
    )
    failed = run("sst2", "bkrz", 0.5, 0, status="failed", error="RuntimeError: DataLoader worker (pid 4711) is killed")
    leave(folder / "bkrz_k0.5_lr5e-05_s0_sst2_minilm-dead0000", failed, trace)
    leave(folder / "bkrz_k0.5_lr5e-05_s1_sst2_minilm-dead0001", run("sst2", "bkrz", 0.5, 1, status="running"))
    return folder


def nasty(folder: Path) -> Path:
    """Two finished runs and a failed one whose names, config, error and log hold markup, quotes and a secret."""
    for seed in (0, 1):
        names = {"config.task.name": f"task {NASTY}", "config.method.name": f"m {NASTY}", "config.model.name": NASTY}
        content = run("sst2", "norm", 0.3, seed, **names, **{"config.task.max_length": NASTY})
        content["config"]["method"]["rule"] = ["top", NASTY][seed]
        content["provenance"]["command"] += f" label='{NASTY}' logger.api_key={SECRET}"
        leave(folder / f"cell{seed}", content)
    failed = run("sst2", "norm", 0.3, 2, status="failed", error=f"ValueError: {NASTY} WANDB_API_KEY={SECRET}")
    leave(folder / "cell2 <img src=x onerror=alert(1)>", failed, f"line\n{NASTY}\ntoken {SECRET}\n")
    return folder


def failures(folder: Path) -> Path:
    """No finished run: one that failed, one that left nothing but a log."""
    leave(folder / "cell0", run("sst2", "norm", 0.3, 0, status="failed", error="ValueError: lr=-1: must be > 0"))
    (folder / "cell1").mkdir()
    (folder / "cell1" / "run.log").write_text("Killed\n", encoding="utf-8")
    return folder
