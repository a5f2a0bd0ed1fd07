"""One finished run, flat: read from results.json, written to and read from the tracked records."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from keepfrac.errors import UserError
from keepfrac.storage import results
from keepfrac.storage.redact import hide_paths, redact

DENSE = "nosp"
_TOP_LEFT_OUT = {
    "name",
    "seed",
    "lr",
    "keep_frac",
    "hardware",
    "logger",
    "export",
    "hydra",
    "checkpoint_every",
    "eval_batch_size",
    "fidelity_every",
    "probe_steps",
}
_LEFT_OUT = {"task.eval_batch_size", "task.name", "model.name", "method.name", "method.keep_frac"}
# Beside the method's settings, what tells the arms of one table apart; all else makes another table.
_OWN = ("backward", "distill", "augment", "fgm", "ema", "r_drop", "layer_decay")
_FORMER_RUNS = ("model.run", "method.distill.teacher")
_SEED_AND_IDENTITY = re.compile(r"_s\d+(?=_)|-[0-9a-f]{8}(?=/|$)")
_MARKS_OF_A_CELL = ("run.log", "config.yaml", "progress.json", ".hydra", ".lock")


@dataclass(frozen=True)
class Cell:
    """One finished run. Every field is one column of the records, in this order.

    `settings` is the flat configuration less seed, lr, keep_frac and what does not change a score: two cells of
    one task, model and method with equal settings, keep_frac and lr differ by seed alone. `latency_*` is inference: one
    forward pass of the delivered and of the dense model, batch 1, length 128. `pinned` counts linears that attention
    keeps dense. `trained_frac` is the share of the parameters that an adapter trains, `unmerged_score` its test score
    before it is merged. `date` is when the run began, in UTC, as ISO text.
    """

    identity: str
    command: str
    task: str
    model: str
    method: str
    keep_asked: float | None
    keep_achieved: float | None
    keep_unit: str | None
    keep_of: str | None
    fallbacks: int | None
    pinned: int | None
    lr: float | None
    seed: int | None
    epochs: float | None
    steps: int | None
    rows: int | None
    test_rows: int | None
    best_metric: str
    direction: str
    val_score: float | None
    test_score: float | None
    test_scores: dict[str, float]
    saved_bytes: int | None
    saved_bytes_dense: int | None
    step_seconds: float | None
    step_seconds_dense: float | None
    latency_seconds: float | None
    latency_seconds_dense: float | None
    trained_frac: float | None
    unmerged_score: float | None
    probe: str | None
    params: int | None
    nonzeros: int | None
    peak_bytes: int | None
    train_seconds: float | None
    precision: str | None
    device: str | None
    torch: str | None
    transformers: str | None
    git_sha: str | None
    date: str | None
    settings: dict[str, Any]


@dataclass(frozen=True)
class Problem:
    """A cell that has no result: its folder's name, its status and the one line of its error."""

    cell: str
    status: str
    error: str


def read_sweep(folder: Path) -> tuple[list[Cell], list[Problem]]:
    """The finished cells of a sweep's folder (or of one run's folder) and those that are not finished.

    Raises:
        UserError: the folder is not there, or holds no run.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give a sweep's folder, multirun/<name>.")
    cells: list[Cell] = []
    problems: list[Problem] = []
    for path in _cell_folders(folder):
        found = read_cell(path)
        (cells if isinstance(found, Cell) else problems).append(found)  # type: ignore[arg-type]
    if not cells and not problems:
        raise UserError(f"{folder} holds no results.json: run a sweep into it first (python -m src.main name=...).")
    return cells, problems


def read_cell(folder: Path) -> Cell | Problem:
    """One run's folder as a Cell when it is done, else as a Problem."""
    try:
        content = results.read(folder)
        if content is None:
            return _without_results(folder)
        status = str(content.get("status"))
        if status == "done":
            return cell_of(content)
        return Problem(folder.name, status, redact(_one_line(content.get("error"))))
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        return Problem(folder.name, "unreadable", redact(_one_line(f"results.json: {error!r}")))


def _without_results(folder: Path) -> Problem:
    if (folder / results.FILE).exists():
        return Problem(folder.name, "unreadable", f"{results.FILE} is torn or of another schema version")
    return Problem(folder.name, "unfinished", f"no {results.FILE} yet")


def cell_of(content: Mapping[str, Any]) -> Cell:
    """A `Cell` from the content of a results.json of status done."""
    config, kept, cost, size = (_dict(content, key) for key in ("config", "kept", "cost", "size"))
    provenance, scores, metric = (_dict(content, "provenance"), _dict(content, "scores"), content["best_metric"])
    method, task, model = (_dict(config, key) for key in ("method", "task", "model"))
    rows, versions = _dict(_dict(provenance, "data"), "rows"), _dict(provenance, "versions")
    return Cell(
        identity=content["identity"],
        command=_safe(provenance.get("command") or ""),
        task=_safe(task.get("name") or "?"),
        model=_safe(model.get("name") or Path(str(model.get("run") or "?")).name),
        method=str(method.get("name") or "?"),
        keep_asked=_number(kept.get("asked", method.get("keep_frac"))),
        keep_achieved=_number(kept.get("achieved")),
        keep_unit=kept.get("unit"),
        keep_of=kept.get("of"),
        fallbacks=_fallbacks(kept.get("fallbacks")),
        pinned=_fallbacks(kept.get("pinned")),
        lr=_number(config.get("lr")),
        seed=config.get("seed"),
        epochs=_number(config.get("epochs")),
        steps=cost.get("steps", config.get("steps")),
        rows=rows.get("train", task.get("rows")),
        test_rows=rows.get("test"),
        best_metric=metric,
        direction=content.get("direction") or "max",
        val_score=_number(scores.get(f"val/{metric}")),
        test_score=_number(scores.get(f"test/{metric}")),
        test_scores={k.removeprefix("test/"): v for k, v in sorted(scores.items()) if k.startswith("test/")},
        saved_bytes=_integer(cost.get("saved_bytes")),
        saved_bytes_dense=_integer(cost.get("saved_bytes_dense")),
        step_seconds=_number(cost.get("step_seconds")),
        step_seconds_dense=_number(cost.get("step_seconds_dense")),
        latency_seconds=_number(cost.get("latency_seconds")),
        latency_seconds_dense=_number(cost.get("latency_seconds_dense")),
        trained_frac=_number(kept.get("trained_frac")),
        unmerged_score=_number(kept.get(f"unmerged_test_{metric}")),
        train_seconds=_number(cost.get("train_seconds")),
        probe=cost.get("probe"),
        params=size.get("params"),
        nonzeros=size.get("nonzeros"),
        peak_bytes=cost.get("peak_bytes"),
        precision=provenance.get("precision"),
        device=provenance.get("device") and _safe(provenance["device"]),
        torch=versions.get("torch"),
        transformers=versions.get("transformers"),
        git_sha=_commit(provenance),
        date=_moment(provenance.get("started")),
        settings=settings_of(config, provenance.get("precision")),
    )


def settings_of(config: Mapping[str, Any], precision: str | None = None) -> dict[str, Any]:
    """The flat configuration less seed, lr, keep_frac, names, hardware, logger, outputs; plus precision."""
    top = {key: value for key, value in config.items() if key not in _TOP_LEFT_OUT}
    own = {key: value for key in _OWN if (value := top.pop(key, None)) is not None and not _is_idle(value)}
    top["method"] = _dict(top, "method") | own
    copies = {"seed": config.get("seed"), "lr": config.get("lr")}
    flat = {}
    for key, value in _flatten(top):
        leaf = key.rpartition(".")[2]
        copied = leaf in copies and value == copies[leaf]  # task.seed: ${seed}
        if not (copied or leaf in ("_target_", "num_workers")):
            flat[key] = _safe(value) if isinstance(value, str) else value
    return without_left_out({**flat, "precision": precision}, config.get("seed"))


def without_left_out(settings: Mapping[str, Any], seed: int | None) -> dict[str, Any]:
    """Flat settings, also as older records have them, less what tells no two arms apart.

    That is what is off (null, false, a group's name none), so that cells from before an option pool with later ones;
    copies of the run's seed (method.selection_seed); and of a former run, from which a model comes, its seed.
    """
    return {
        key: _SEED_AND_IDENTITY.sub("", value) if key in _FORMER_RUNS and isinstance(value, str) else value
        for key, value in settings.items()
        if key not in _TOP_LEFT_OUT | _LEFT_OUT
        and not _is_off(key, value)
        and not (key.endswith("_seed") and value == seed)
    }


def _is_idle(value: object) -> bool:
    """Whether a group does nothing: its name is none, or it waits for a teacher."""
    return isinstance(value, Mapping) and (value["name"] == "none" or ("teacher" in value and not value["teacher"]))


def _is_off(key: str, value: object) -> bool:
    return value is None or value is False or (value == "none" and key.endswith(".name"))


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """(dotted key, value) of every leaf; a list is one leaf, as text."""
    leaves: list[tuple[str, Any]] = []
    for key, value in sorted(tree.items()):
        if isinstance(value, Mapping):
            leaves += _flatten(value, f"{prefix}{key}.")
        else:
            leaves.append((f"{prefix}{key}", json.dumps(value) if isinstance(value, list) else value))
    return leaves


def _cell_folders(folder: Path) -> list[Path]:
    if (folder / results.FILE).exists():
        return [folder]
    marks = (results.FILE, *_MARKS_OF_A_CELL)
    return [path for path in sorted(folder.iterdir()) if path.is_dir() and any((path / m).exists() for m in marks)]


def _dict(tree: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A part of results.json that may be absent or null."""
    return dict(tree.get(key) or {})


def _number(value: Any) -> float | None:
    """A finite float, or None."""
    return float(value) if value is not None and math.isfinite(float(value)) else None


def _integer(value: Any) -> int | None:
    return None if value is None else int(value)


def _fallbacks(value: Any) -> int | None:
    return len(value) if isinstance(value, list | dict) else value


def _safe(text: Any) -> str:
    """Without secrets and without this machine's paths."""
    return hide_paths(redact(str(text)))


def _one_line(text: Any) -> str:
    return " ".join(str(text or "").split())


def _commit(provenance: Mapping[str, Any]) -> str | None:
    """The commit, marked where the tree had changes that are not in it."""
    sha = provenance.get("git_sha")
    return f"{sha}+changes" if sha and provenance.get("git_dirty") else sha


def _moment(started: Any) -> str | None:
    """A time given as ISO text or as seconds since 1970: ISO text in UTC, so that it sorts."""
    if isinstance(started, int | float):
        return datetime.fromtimestamp(started, UTC).isoformat()
    try:
        moment = datetime.fromisoformat(str(started))
    except ValueError:
        return str(started) if started else None
    return moment.astimezone(UTC).isoformat() if moment.tzinfo else str(started)
