"""A sweep before it starts and while it runs: its plan, its share of the machine, its time.

Plain values in, plain values out; the process-per-job launcher composes the cells, starts the
processes and watches them.
"""

import json
import re
import signal
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from keepfrac.storage import results
from keepfrac.storage.redact import redact

Kind = tuple[str, str]  # (model, task): what the length of a run depends on first
TAIL_BYTES = 8192
TAIL_LINES = 6


@dataclass(frozen=True)
class Job:
    """One cell of the grid: what to type, and where its result stands.

    `code` is the fingerprint of the code that would run it now; only a result of the code `code_asked` counts as done.
    """

    overrides: tuple[str, ...]
    identity: str
    folder: Path
    label: str
    kind: Kind
    code: str = ""
    code_asked: str | None = None


@dataclass(frozen=True)
class Missing:
    """A combination of the grid that cannot run because its data or weights are not to be had."""

    overrides: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Plan:
    """The grid, sorted: distinct cells to run and done before, combinations without data, and repeats.

    `stale` of the cells that are done were made by other code.
    """

    todo: tuple[Job, ...]
    done: tuple[Job, ...]
    missing: tuple[Missing, ...]
    repeats: int
    stale: int = 0


@dataclass(frozen=True)
class Running:
    """A job under way; `progress` is the content of its progress.json."""

    label: str
    kind: Kind
    seconds: float
    progress: Mapping


@dataclass(frozen=True)
class Status:
    """A sweep at one moment. `held` of the `left` cells are being run by another process."""

    done: int
    failed: int
    left: int
    held: int
    running: tuple[Running, ...]
    seconds_left: float | None


@dataclass(frozen=True)
class Failure:
    """A cell that did not finish: why, and the last lines that it wrote."""

    label: str
    reason: str
    log: Path
    tail: str


def make_plan(cells: Iterable[Job | Missing]) -> Plan:
    """Sorts the cells of a grid; cells of equal identity count once, the first stands for all."""
    distinct: dict[str, Job] = {}
    missing, repeats = [], 0
    for cell in cells:
        if isinstance(cell, Missing):
            missing.append(cell)
        elif cell.identity in distinct:
            repeats += 1
        else:
            distinct[cell.identity] = cell
    todo: list[Job] = []
    done: list[Job] = []
    stale = 0
    for job in distinct.values():
        left = results.finished_run(job.folder, job.identity, job.code_asked)
        is_done = left is not None and results.lost(job.folder, left) is None
        (done if is_done else todo).append(job)
        stale += is_done and results.code_of(left) not in (None, job.code)
    return Plan(tuple(todo), tuple(done), tuple(missing), repeats, stale)


def describe_plan(plan: Plan, name: str, num_at_once: int, threads: int, expected: str) -> list[str]:
    """Returns the lines that are shown before anything starts."""
    num_todo, num_done = len(plan.todo), len(plan.done)
    share = f"{num_at_once} at a time, {threads} {'thread' if threads == 1 else 'threads'} each"
    lines = [f"sweep {name}: {num_todo + num_done} cells, {num_done} done, {num_todo} to run ({share})"]
    if plan.stale:
        lines.append(f"made by other code than today's: {plan.stale} of those done; rerun=changed runs them again")
    if plan.repeats:
        lines.append(f"same as another cell, run once: {plan.repeats} of the combinations")
    for reason, count in Counter(cell.reason for cell in plan.missing).items():
        lines.append(f"skipped, no data: {count} of the combinations: {reason}")
    return lines + ([f"expected: {expected}"] if plan.todo else [])


def nothing_to_run(plan: Plan) -> str:
    """Returns the sentence for a grid of which no cell has its data."""
    reasons = "; ".join(dict.fromkeys(cell.reason for cell in plan.missing)) or "the grid is empty"
    return f"nothing to run: {reasons} (for GLUE: make sweep-glue DATA_DIR=<your glue_data folder>)"


def threads_per_job(num_cores: int, num_at_once: int) -> int:
    """Returns the cores that each of `num_at_once` jobs may use, at least 1."""
    return max(1, num_cores // num_at_once)


def known_seconds(finished: Iterable[Mapping]) -> dict[Kind, list[float]]:
    """Collects how long finished runs took, by (model, task), from their results."""
    known: dict[Kind, list[float]] = {}
    for each in finished:
        config, seconds = each.get("config") or {}, (each.get("provenance") or {}).get("seconds")
        if isinstance(seconds, int | float):
            known.setdefault(kind_of(config), []).append(float(seconds))
    return known


def kind_of(config: Mapping) -> Kind:
    """Returns (model, task) of a configuration."""
    return name_of(config, "model"), name_of(config, "task")


def name_of(config: Mapping, group: str) -> str:
    """Returns the name of a configuration's group; "None" where it has none."""
    part = config.get(group)
    return str(part.get("name") if isinstance(part, Mapping) else None)


def expected_seconds(kind: Kind, known: Mapping[Kind, Sequence[float]]) -> float | None:
    """Returns the mean of the runs of the same model and task, else of all runs; None without any."""
    alike = known.get(kind) or [seconds for each in known.values() for seconds in each]
    return mean(alike) if alike else None


def seconds_left(
    waiting: Iterable[Kind], running: Iterable[Running], known: Mapping[Kind, Sequence[float]], num_at_once: int
) -> float | None:
    """Estimates how long the rest of a sweep takes; None where nothing tells.

    A running job is judged by its own steps once a tenth of them is done, else by finished runs.
    """
    rest = [expected_seconds(kind, known) for kind in waiting]
    rest += [_rest_of(job, known) for job in running]
    sure = [seconds for seconds in rest if seconds is not None]
    return None if len(sure) < len(rest) else max([sum(sure) / num_at_once, *sure], default=0.0)


def _rest_of(job: Running, known: Mapping[Kind, Sequence[float]]) -> float | None:
    step, steps = job.progress.get("step") or 0, job.progress.get("steps") or 0
    whole = job.seconds * steps / step if steps and step >= steps / 10 else expected_seconds(job.kind, known)
    return None if whole is None else max(0.0, whole - job.seconds)


def duration(seconds: float | None) -> str:
    """Returns seconds as people say them."""
    if seconds is None:
        return "unknown"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def stated_time(experiment: Path) -> str | None:
    """Returns what the header of an experiment's yaml says of its time; None without such a line."""
    lines = experiment.read_text(encoding="utf-8").splitlines() if experiment.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("# Time:")), None)


def combinations(axes: Mapping[str, object]) -> int | None:
    """Returns how many cells the axes of an experiment span; None where one of them is more than a list of values."""
    product = 1
    for values in axes.values():
        if re.search(r"[(){}\[\]'\"]", str(values)):
            return None
        product *= len(str(values).split(","))
    return product


def narrowed(who: str, stated: str, cells: int, whole: int | None) -> str:
    """Returns the time that an experiment states, and the part of it that fewer cells take.

    Args:
        who: states it.
        stated: such as "about 35 minutes on 2 cores".
        cells: how many are to run.
        whole: cells of the whole grid; None: not known.
    """
    said = f"{who} says: {stated}"
    found = re.match(r"(?:about )?(\d+(?:\.\d+)?) (minute|hour|day)s?\b(?! a cell)", stated)
    if found is None or not whole or cells >= whole:
        return said
    seconds = float(found[1]) * {"minute": 60, "hour": 3600, "day": 86400}[found[2]] * cells / whole
    return f"about {duration(seconds)} for {cells} of its {whole} cells, as {said}"


def read_progress(folder: Path, since: float) -> dict:
    """Returns a job's progress.json; empty where there is none yet, or only one from before `since`."""
    path = folder / "progress.json"
    try:
        progress = json.loads(path.read_text(encoding="utf-8")) if path.stat().st_mtime >= since else {}
    except (OSError, ValueError):
        return {}
    return progress if isinstance(progress, dict) else {}


def ended_by(returncode: int) -> str:
    """Says in words how a job without a finished result ended."""
    if returncode >= 0:
        return f"exit code {returncode}" if returncode else "ended without a finished results.json"
    name = next((each.name for each in signal.Signals if each == -returncode), f"signal {-returncode}")
    return f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")


def log_tail(log: Path, start: int = 0) -> str:
    """Returns the last lines that were written to a log from byte `start` on, without secrets."""
    try:
        with log.open("rb") as file:
            end = file.seek(0, 2)
            file.seek(max(start, end - TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    lines = [line.rstrip().rpartition("\r")[2] for line in text.split("\n")]
    return redact("\n".join([line for line in lines if line][-TAIL_LINES:]))
