"""results.json: what a run leaves. Written last and atomically, so that a file with status `done` is a finished run.

Schema (version 1): status, error, identity, config, provenance, best_metric, direction, scores, kept, size, cost,
delivered.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from keepfrac.errors import UserError
from keepfrac.storage import delivered
from keepfrac.storage.files import write_atomically

SCHEMA_VERSION = 1
FILE = "results.json"
PARTS = ("config", "provenance", "scores", "kept", "size", "cost")
"""What is a mapping where it is there."""


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
    ours = isinstance(results, dict) and results.get("schema_version") == SCHEMA_VERSION
    return results if ours and all(isinstance(results.get(part) or {}, dict) for part in PARTS) else None


def is_done(folder: Path, identity: str, code: str | None = None) -> bool:
    """Returns whether this folder holds the finished run of exactly this cell, with all that it delivered.

    Args:
        folder: of the cell.
        identity: of the cell.
        code: fingerprint of the code that must have made it; None: any.
    """
    results = finished_run(folder, identity, code)
    return results is not None and lost(folder, results) is None


def finished_run(folder: Path, identity: str, code: str | None = None) -> dict | None:
    """Returns the results of the finished run of exactly this cell, whatever became of its files; None without."""
    results = read(folder)
    return results if finishes(results, identity, code) else None


def finishes(results: Mapping | None, identity: str, code: str | None = None) -> bool:
    """Returns whether results are those of the finished run of this cell, made by this code (None: by any)."""
    if results is None or results.get("status") != "done" or results.get("identity") != identity:
        return False
    return code in (None, code_of(results))


def code_of(results: Mapping | None) -> str | None:
    """Returns the fingerprint of the code that made these results; None: they are of a version that kept none."""
    place: object = results
    for key in ("provenance", "fingerprints", "code"):
        place = place.get(key) if isinstance(place, Mapping) else None
    return place if isinstance(place, str) else None


def lost(folder: Path, results: dict) -> str | None:
    """Returns in words which delivered file is gone or changed; None: none is. Version 0.1.0 did not list them."""
    files = results.get("delivered")
    return delivered.missing(Path(folder), files) if isinstance(files, dict) else None


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
    return [(folder, results) for folder, results in cells(sweep) if results.get("status") == "done"]
