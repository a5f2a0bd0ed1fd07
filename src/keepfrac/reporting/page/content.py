"""What the page says, as plain values: runs, arms with their spread over seeds, runs without a result, notes."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from keepfrac.reporting.arms import Arm, tuned_together
from keepfrac.reporting.build import Report
from keepfrac.reporting.cells import FinishedRun, Problem
from keepfrac.reporting.page import traces
from keepfrac.reporting.page.traces import rounded
from keepfrac.reporting.statistics import Sample, summarise
from keepfrac.reporting.tables import short, what
from keepfrac.storage import results
from keepfrac.storage.redact import redact_tree

_SAME = (
    "task", "method", "lr", "seed", "direction", "val_score", "test_score", "saved_bytes", "saved_bytes_dense",
    "step_seconds", "step_seconds_dense", "latency_seconds", "latency_seconds_dense", "peak_bytes", "params",
    "nonzeros", "train_seconds", "keep_asked", "keep_achieved", "device", "precision", "torch", "fallbacks", "steps",
    "identity",
)  # fmt: skip
_OF_ARM = ("task", "setup", "metric", "direction", "method", "keep_asked", "keep_achieved", "lr")
_MEASURED = ("saved_bytes", "step_seconds", "latency_seconds", "params", "nonzeros", "peak_bytes")
_LONGEST_ERROR = 2000


def content_of(report: Report, folder: Path) -> dict[str, Any]:
    """Returns the content of a report's page.

    Args:
        report: of a sweep's folder.
        folder: that folder, where the runs' curves and logs are.
    """
    left = {str(content.get("identity")): (path, content) for path, content in results.cells(folder)}
    arm_of = {identity: arm for arm in report.arms for identity in arm.identities}
    arms = {tuned_together(cell): arm_of[cell.identity] for cell in report.cells if cell.identity in arm_of}
    shown = sorted(
        report.cells, key=lambda cell: (report.arms.index(arms[tuned_together(cell)]), cell.lr or 0, cell.seed or 0)
    )
    content = {
        "name": report.name,
        "runs": [_run(cell, arms[tuned_together(cell)], *left[cell.identity]) for cell in shown],
        "arms": [_arm(arm, [cell for cell in report.cells if cell.identity in arm.identities]) for arm in report.arms],
        "problems": [_problem(problem, folder) for problem in report.problems],
        "notes": list(report.notes),
    }
    return redact_tree(content)  # a second look at every text, whoever wrote it


def _run(cell: FinishedRun, arm: Arm, path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **{key: _plain(getattr(cell, key)) for key in _SAME},
        "cell": path.name,
        "date": cell.date and cell.date[:10],
        "series": arm.label,
        "setup": arm.setup,
        "model": short(cell.model),
        "metric": cell.best_metric,
        "commit": None if cell.git_sha is None else _short_commit(cell.git_sha),
        "what": what(arm),
        "scores": {name: rounded(value) for name, value in cell.test_scores.items()},
        "settings": {key: _plain(value) for key, value in cell.settings.items()},
        "command": traces.command_of(content),
        "curves": traces.curves(path / "metrics.csv", cell.steps),
        "examples": traces.examples(path / "examples.json"),
    }


def _arm(arm: Arm, cells: Sequence[FinishedRun]) -> dict[str, Any]:
    difference = arm.difference and {key: rounded(value) for key, value in asdict(arm.difference).items()}
    return {
        **{key: _plain(getattr(arm, key)) for key in _OF_ARM},
        "series": arm.label,
        "dense": arm.is_dense,
        "model": short(arm.model),
        "what": what(arm),
        "lrs": arm.lrs_tried,
        "chosen": arm.lr_chosen,
        "seeds": list(arm.seeds),
        "val": _sample(arm.val),
        "test": _sample(arm.test),
        "difference": difference,
        "saved_ratio": rounded(arm.saved_ratio.mean),
        "step_ratio": rounded(arm.step_ratio.mean),
        "cost": {name: _sample(summarise(getattr(cell, name) for cell in cells)) for name in _MEASURED},
        "runs": [cell.identity for cell in cells],
    }


def _problem(problem: Problem, sweep: Path) -> dict[str, Any]:
    path = sweep / problem.cell if (sweep / problem.cell).is_dir() else sweep
    content = results.read(path) or {}
    named = {part: _name(content, part) for part in ("task", "method", "model")}
    return {
        **named,
        "cell": problem.cell,
        "status": problem.status,
        "error": traces.shown(problem.error)[:_LONGEST_ERROR],
        "tail": traces.tail(path / "run.log"),
        "command": traces.command_of(content),
    }


def _name(content: Mapping[str, Any], part: str) -> str | None:
    """The name of a run's task, method or model; None where it is unknown."""
    config = content.get("config")
    settings = config.get(part) if isinstance(config, Mapping) else None
    name = settings.get("name") if isinstance(settings, Mapping) else None
    return None if name is None else short(traces.shown(str(name)))


def _short_commit(sha: str) -> str:
    """Twelve digits, and whether there were changes; all forty look like a key."""
    digits, plus, changes = sha.partition("+")
    return digits[:12] + plus + changes


def _sample(sample: Sample) -> dict[str, float | None]:
    return {"n": sample.n, "mean": rounded(sample.mean), "sd": rounded(sample.sd)}


def _plain(value: Any) -> Any:
    """A value that JSON has."""
    return rounded(value, 9) if isinstance(value, float) else value
