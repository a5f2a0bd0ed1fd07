"""One finished run, flat: read from results.json, written to and read from the tracked records."""

import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from functools import cache, reduce
from pathlib import Path
from typing import Any

from keepfrac.errors import UserError
from keepfrac.reporting.pooling import settings_of
from keepfrac.storage import results
from keepfrac.storage.redact import hide_paths, redact

DENSE = "nosp"
_MARKS_OF_A_CELL = ("run.log", "config.yaml", "progress.json", ".hydra", ".lock")


def at(*places: str) -> Any:
    """Returns a field that results.json has at a dotted place; of several the first that is there."""
    return field(metadata={"at": places})


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """One finished run. Every field is one column of the records, in this order.

    `settings` is the flat configuration less seed, lr, keep_frac and what does not change a score: two cells of
    one task, model and method with equal settings, keep_frac and lr differ by seed alone. `latency_*` is inference: one
    forward pass of the delivered and of the dense model, batch 1, length 128. `pinned` counts linears that attention
    keeps dense. `trained_frac` is the share of the parameters that an adapter trains, `unmerged_score` its test score
    before it is merged. `code` and `data` are fingerprints of what made it and of what it was made on, None where its
    version kept none. `date` is when the run began, in UTC, as ISO text.
    """

    identity: str = at("identity")
    command: str
    task: str
    model: str
    method: str
    keep_asked: float | None = at("kept.asked", "config.method.keep_frac")
    keep_achieved: float | None = at("kept.achieved")
    keep_unit: str | None = at("kept.unit")
    keep_of: str | None = at("kept.of")
    fallbacks: int | None
    pinned: int | None
    lr: float | None = at("config.lr")
    seed: int | None = at("config.seed")
    epochs: float | None = at("config.epochs")
    steps: int | None = at("cost.steps", "config.steps")
    rows: int | None = at("provenance.data.rows.train", "config.task.rows")
    test_rows: int | None = at("provenance.data.rows.test")
    best_metric: str = at("best_metric")
    direction: str
    val_score: float | None
    test_score: float | None
    test_scores: dict[str, float]
    saved_bytes: int | None = at("cost.saved_bytes")
    saved_bytes_dense: int | None = at("cost.saved_bytes_dense")
    step_seconds: float | None = at("cost.step_seconds")
    step_seconds_dense: float | None = at("cost.step_seconds_dense")
    latency_seconds: float | None = at("cost.latency_seconds")
    latency_seconds_dense: float | None = at("cost.latency_seconds_dense")
    trained_frac: float | None = at("kept.trained_frac")
    unmerged_score: float | None
    probe: str | None = at("cost.probe")
    params: int | None = at("size.params")
    nonzeros: int | None = at("size.nonzeros")
    peak_bytes: int | None = at("cost.peak_bytes")
    train_seconds: float | None = at("cost.train_seconds")
    precision: str | None = at("provenance.precision")
    device: str | None
    torch: str | None = at("provenance.versions.torch")
    transformers: str | None = at("provenance.versions.transformers")
    git_sha: str | None
    code: str | None = at("provenance.fingerprints.code")
    data: str | None = at("provenance.fingerprints.data")
    date: str | None
    settings: dict[str, Any]


@dataclass(frozen=True)
class Problem:
    """A cell that has no result: its folder's name, its status and the one line of its error."""

    cell: str
    status: str
    error: str


def read_sweep(folder: Path) -> tuple[list[FinishedRun], list[Problem]]:
    """Returns the finished cells of a sweep's folder (or of one run's folder) and those without a result.

    Raises:
        UserError: the folder is not there, or holds no run.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give a sweep's folder, multirun/<name>.")
    found = [read_cell(path) for path in _cell_folders(folder)]
    if not found:
        raise UserError(f"{folder} holds no results.json: run a sweep into it first (python -m src.main name=...).")
    return [one for one in found if isinstance(one, FinishedRun)], [one for one in found if isinstance(one, Problem)]


def read_cell(folder: Path) -> FinishedRun | Problem:
    """Returns one run's folder as a FinishedRun when it is done, else as a Problem."""
    content = results.read(folder)
    if content is None:
        if (folder / results.FILE).exists():
            return Problem(folder.name, "unreadable", f"{results.FILE} is torn or of another schema version")
        return Problem(folder.name, "unfinished", f"no {results.FILE} yet")
    if content.get("status") != "done":
        return Problem(folder.name, str(content.get("status")), _one_line(content.get("error")))
    try:
        return cell_of(content)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        return Problem(folder.name, "unreadable", _one_line(f"{results.FILE}: {error!r}"))


def cell_of(content: Mapping[str, Any]) -> FinishedRun:
    """Returns the `FinishedRun` of a results.json of status done.

    Raises:
        ValueError, KeyError, TypeError: something is missing, or is not what it should be.
    """
    config, kept, provenance, scores = (_part(content, key) for key in ("config", "kept", "provenance", "scores"))
    model, metric = _part(config, "model"), content["best_metric"]
    values = {one.name: _first(content, one.metadata["at"]) for one in fields(FinishedRun) if one.metadata} | {
        "command": _safe(provenance.get("command") or ""),
        "task": _safe(_part(config, "task").get("name") or "?"),
        "model": _safe(model.get("name") or Path(str(model.get("run") or "?")).name),
        "method": str(_part(config, "method").get("name") or "?"),
        "fallbacks": _count(kept.get("fallbacks")),
        "pinned": _count(kept.get("pinned")),
        "direction": content.get("direction") or "max",
        "val_score": scores.get(f"val/{metric}"),
        "test_score": scores.get(f"test/{metric}"),
        "test_scores": {k.removeprefix("test/"): v for k, v in sorted(scores.items()) if k.startswith("test/")},
        "unmerged_score": kept.get(f"unmerged_test_{metric}"),
        "device": provenance.get("device") and _safe(provenance["device"]),
        "git_sha": _commit(provenance),
        "date": _moment(provenance.get("started")),
        "settings": settings_of(config, provenance.get("precision")),
    }
    return FinishedRun(**{name: typed(name, value) for name, value in values.items()})


def typed(name: str, value: Any) -> Any:
    """Returns a value as the field `name` of a FinishedRun holds it; a number that is not finite is None.

    Raises:
        ValueError: it is of another type, or is missing and may not be.
        OverflowError: an infinite whole number.
    """
    kind, may_be_none = kinds()[name]
    if value is None and may_be_none:
        return None
    allowed: Any = int | float if kind in (int, float) else kind
    if not isinstance(value, allowed) or isinstance(value, bool):
        raise ValueError(f"{name}={value!r} is not of type {kind.__name__}")
    if kind is float:
        return float(value) if math.isfinite(value) else None
    if name == "test_scores" and not all(isinstance(one, int | float) for one in value.values()):
        raise ValueError(f"{name}={value!r} has a score that is no number")
    return int(value) if kind is int else value


@cache
def kinds() -> dict[str, tuple[type, bool]]:
    """Returns of each field of a FinishedRun its type (float, int, str or dict) and whether it may be None."""
    found = {}
    for name, hint in typing.get_type_hints(FinishedRun).items():
        may_be_none = isinstance(hint, types.UnionType)
        kind = typing.get_args(hint)[0] if may_be_none else hint
        found[name] = (typing.get_origin(kind) or kind, may_be_none)
    return found


def _cell_folders(folder: Path) -> list[Path]:
    if (folder / results.FILE).exists():
        return [folder]
    marks = (results.FILE, *_MARKS_OF_A_CELL)
    return [path for path in sorted(folder.iterdir()) if path.is_dir() and any((path / m).exists() for m in marks)]


def _part(tree: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Returns a part of results.json, empty where it is absent or null.

    Raises:
        TypeError, ValueError: it is no mapping.
    """
    return dict(tree.get(key) or {})


def _first(content: Mapping[str, Any], places: Sequence[str]) -> Any:
    for place in places:
        *parents, key = place.split(".")
        if key in (tree := reduce(_part, parents, content)):
            return tree[key]
    return None


def _count(value: Any) -> Any:
    return len(value) if isinstance(value, list | dict) else value


def _safe(text: Any) -> str:
    """Without secrets and without this machine's paths."""
    return hide_paths(redact(str(text)))


def _one_line(text: Any) -> str:
    return redact(" ".join(str(text or "").split()))


def _commit(provenance: Mapping[str, Any]) -> Any:
    """The commit, marked where the tree had changes that are not in it."""
    sha = provenance.get("git_sha")
    return f"{sha}+changes" if isinstance(sha, str) and provenance.get("git_dirty") else sha


def _moment(started: Any) -> str | None:
    """A time given as ISO text or as seconds since 1970: ISO text in UTC, so that it sorts."""
    if isinstance(started, int | float):
        return datetime.fromtimestamp(started, UTC).isoformat()
    try:
        moment = datetime.fromisoformat(str(started))
    except ValueError:
        return str(started) if started else None
    return moment.astimezone(UTC).isoformat() if moment.tzinfo else str(started)
