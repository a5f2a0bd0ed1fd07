"""A run's files other than results.json, prepared for the page: its curves, its command, the end of its log."""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from keepfrac.storage.redact import hide_paths, redact

ROOT = Path(__file__).resolve().parents[4]
POINTS = 200  # per curve: a screen shows no more
TAIL_BYTES = 16384
TAIL_LINES = 40
EXAMPLES = 5
EXAMPLE_LENGTH = 600
Curve = tuple[list[int], list[float | None]]


def curves(path: Path, steps: int | None = None) -> dict[str, Curve]:
    """Returns the curves of a metrics.csv: metric -> (steps, values), at most `POINTS` points each.

    A score of the delivered model stands at the last step whatever step it was trained to, so it is no point of the
    curve of validation; test scores have no curve at all.

    Args:
        path: lines of step,metric,value; a torn line is passed over, and of two values at one step the later counts.
        steps: optimizer steps of the fit.
    """
    found: dict[str, dict[int, float]] = {}
    for step, metric, value in _lines(path):
        if not metric.startswith("test/"):
            found.setdefault(metric, {})[step] = value
    return {metric: downsample(_fitted(metric, found[metric], steps)) for metric in sorted(found)}


def downsample(values: Mapping[int, float], points: int = POINTS) -> Curve:
    """Returns a curve's steps and values; of a long one the minimum and maximum of each interval of steps."""
    steps = sorted(values)
    if len(steps) > points:
        size = 2 * len(steps) / (points - 2)
        starts = [round(size * number) for number in range((points - 2) // 2 + 1)]
        stretches = [steps[start:end] for start, end in itertools.pairwise(starts)]
        kept = {steps[0], steps[-1]}
        for stretch in stretches:
            kept |= {min(stretch, key=values.__getitem__), max(stretch, key=values.__getitem__)}
        steps = sorted(kept)
    return steps, [rounded(values[step]) for step in steps]


def rounded(value: Any, digits: int = 7) -> float | None:
    """Returns a number with so many digits; None for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value if isinstance(value, int) else float(f"{value:.{digits}g}")


def command_of(content: Mapping[str, Any]) -> str:
    """Returns the command that makes a run again, exact but for secrets; a path below the root is relative to it."""
    provenance = content.get("provenance")
    command = provenance.get("command") if isinstance(provenance, Mapping) else None
    return redact(str(command or "")).replace(f"{ROOT}/", "")


def examples(path: Path) -> list[dict[str, Any]]:
    """Returns the first generated texts of a run's test set: meaning (MR), generated, references; few of each."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["test"]
        return [_example(one) for one in found[:EXAMPLES]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def _example(one: Mapping[str, Any]) -> dict[str, Any]:
    texts = [one["generated"], one["meaning"], *one["references"][:EXAMPLES]]
    generated, meaning, *references = (shown(str(text))[:EXAMPLE_LENGTH] for text in texts)
    return {"meaning": meaning, "generated": generated, "references": references}


def tail(log: Path) -> str:
    """Returns the last lines of a log, without secrets and without this machine's paths."""
    try:
        with log.open("rb") as file:
            end = file.seek(0, 2)
            file.seek(max(0, end - TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    # \r: of a progress bar the last state counts; the first line of a part may be half a line, and half a secret
    lines = [line.rstrip().rpartition("\r")[2] for line in text.split("\n")][int(end > TAIL_BYTES) :]
    return shown("\n".join([line for line in lines if line][-TAIL_LINES:]))


def shown(text: str) -> str:
    """Returns a text without secrets and absolute paths; paths of the project are relative to its root."""
    return hide_paths(redact(text).replace(f"{ROOT}/", ""))


def _lines(path: Path) -> Sequence[tuple[int, str, float]]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    parsed = (_parse(line.split(",")) for line in text.splitlines())
    return [line for line in parsed if line is not None]


def _parse(row: Sequence[str]) -> tuple[int, str, float] | None:
    try:
        step, metric, value = row
        return int(step), metric, float(value)
    except ValueError:
        return None


def _fitted(metric: str, values: dict[int, float], steps: int | None) -> dict[int, float]:
    """The values of the fit itself; all of them where the fit had none."""
    if not metric.startswith("val/") or not steps:
        return values
    return {step: value for step, value in values.items() if step < steps} or values
