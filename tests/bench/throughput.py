"""Real tokens per second of whole fine-tuning runs: data, optimizer, validation and all.

    python -m tests.bench.throughput multirun/<sweep>

Of each finished run of a sweep: the real tokens of its training split times its epochs, by the seconds that training
took (results.json), and that by the dense run's on the same task and seed. Figures of runs that did not run alone and
one after the other (hydra.launcher.n_jobs=1) say nothing.
"""

import functools
import json
import sys
from pathlib import Path

from keepfrac.models.load import load_tokenizer
from keepfrac.storage import results
from keepfrac.storage.build import build
from keepfrac.storage.commands import Parser, complain


@functools.cache
def _tokens(task: str, model: str) -> int:
    built = build(json.loads(task))
    built.use(load_tokenizer(json.loads(model)))
    built.setup()
    return int(sum(built.encoded("train").lengths))


def tokens_of(found: dict) -> float:
    """Returns the real tokens that a run trained on: its training split's, as often as it went through it."""
    config = found["config"]
    return _tokens(json.dumps(config["task"]), json.dumps(config["model"])) * config["epochs"]


def rows_of(sweep: Path) -> list[dict]:
    """Returns a row per finished run that trained by epochs."""
    rows = []
    for _, found in results.cells(sweep):
        config = found["config"]
        if found["status"] != "done" or not config["epochs"] or config["steps"]:
            continue
        seconds = found["cost"]["train_seconds"]
        rows.append(
            {
                "task": config["task"]["name"],
                "method": config["method"]["name"],
                "keep_frac": config["method"]["keep_frac"],
                "seed": config["seed"],
                "train_seconds": seconds,
                "tokens_per_second": tokens_of(found) / seconds,
            }
        )
    dense = {(row["task"], row["seed"]): row for row in rows if row["method"] == "nosp"}
    for row in rows:
        base = dense.get((row["task"], row["seed"]))
        row["to_dense"] = row["tokens_per_second"] / base["tokens_per_second"] if base else None
    return sorted(rows, key=lambda row: (row["task"], row["method"] != "nosp", row["method"], row["keep_frac"]))


def main(given: list[str] | None = None) -> int:
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("sweep", type=Path)
    sweep = parser.parse_args(given).sweep
    if not sweep.is_dir():
        return complain(f"{sweep}: no such folder; give a sweep's, multirun/<name>")
    for row in rows_of(sweep):
        times = f"{row['to_dense']:.2f} x dense" if row["to_dense"] else ""
        sys.stdout.write(
            f"{row['task']:16s} {row['method']:14s} {row['keep_frac']:<5g} seed {row['seed']}"
            f" {row['train_seconds']:8.1f} s {row['tokens_per_second']:9.0f} tokens/s   {times}\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
