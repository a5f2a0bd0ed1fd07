"""results.json: what a run leaves. Written last and atomically, so that a file with status `done` is a finished run.

Schema (version 1): status, error, identity, config, provenance, best_metric, direction, scores, kept, size, cost.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from keepfrac.errors import UserError
from keepfrac.storage.files import write_atomically

SCHEMA_VERSION = 1
FILE = "results.json"


def multirun() -> Path:
    """Returns the folder of all sweeps: multirun, or what KEEPFRAC_MULTIRUN names.

    Raises:
        UserError: the variable is there, and empty.
    """
    place = os.environ.get("KEEPFRAC_MULTIRUN", "multirun")
    if not place.strip():
        raise UserError(f"KEEPFRAC_MULTIRUN={place}: must be the folder of all sweeps; unset it for multirun")
    return Path(place)


def evaluation(scores: dict[str, float]) -> str:
    """Returns the scores of each split as one line, in the names of GLUE's script: acc, f1, acc_and_f1, eval_loss."""
    names = {"accuracy": "acc", "loss": "eval_loss"}
    lines: dict[str, list[str]] = {}
    for key, value in scores.items():
        split, _, name = key.partition("/")
        lines.setdefault(split, []).append(f"{names.get(name, name)} = {value:.4f}")
    return "; ".join(f"{split}: {', '.join(sorted(line))}" for split, line in lines.items())


def write(folder: Path, results: dict) -> None:
    """Writes `folder`/results.json."""
    results = {"schema_version": SCHEMA_VERSION, **results}
    write_atomically(Path(folder) / FILE, json.dumps(results, indent=2, allow_nan=True) + "\n")


def read(folder: Path) -> dict | None:
    """Returns the results of a run folder; None where there are none, or where the file is not ours."""
    try:
        results = json.loads((Path(folder) / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return results if isinstance(results, dict) and results.get("schema_version") == SCHEMA_VERSION else None


def is_done(folder: Path, identity: str) -> bool:
    """Returns whether this folder holds the finished run of exactly this cell."""
    results = read(folder)
    return results is not None and results.get("status") == "done" and results.get("identity") == identity


def cells(sweep: Path) -> Iterator[tuple[Path, dict]]:
    """Yields (folder, results) of each run in a sweep folder, sorted by name; of the folder itself if it is a run."""
    sweep = Path(sweep)
    if (own := read(sweep)) is not None:
        yield sweep, own
        return
    for folder in sorted(path for path in sweep.iterdir() if path.is_dir()) if sweep.is_dir() else ():
        if (results := read(folder)) is not None:
            yield folder, results


def finished(sweep: Path) -> list[tuple[Path, dict]]:
    """Returns (folder, results) of each finished run in a sweep folder."""
    return [(folder, results) for folder, results in cells(sweep) if results["status"] == "done"]
