"""What the terminal shows of a sweep: how it stands, its scores at the end, what failed."""

from collections.abc import Iterable, Mapping, Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from keepfrac.storage.redact import redact
from keepfrac.sweep.planning import Failure, Status, duration, name_of


def status_line(status: Status) -> str:
    """Returns one line on the whole sweep."""
    total = status.done + status.failed + status.left + len(status.running)
    held = f" ({status.held} run by another process)" if status.held else ""
    return (
        f"{status.done} of {total} done, {len(status.running)} running, {status.failed} failed, "
        f"{status.left} left{held}, time left: {duration(status.seconds_left)}"
    )


def live_view(status: Status) -> Group:
    """Returns what a terminal shows while a sweep runs."""
    table = Table("running", "step", "score", "phase", "time")
    for job in status.running:
        step, steps, score = (job.progress.get(key) for key in ("step", "steps", "score"))
        steps = "" if step is None else f"{step}/{steps or '?'}"
        score = f"{score:.4f}" if isinstance(score, int | float) else ""
        phase = str(job.progress.get("phase") or "")
        table.add_row(*map(Text, (job.label, steps, score, phase, duration(job.seconds))))
    return Group(table, Text(status_line(status)))


def failure_table(failures: Sequence[Failure]) -> Table:
    """Returns the table of failed cells that ends a sweep: why, and the tail of each log."""
    table = Table("failed", "why", "last lines of its log", show_lines=True)
    for failure in failures:
        end = f"{failure.tail or '(it wrote nothing)'}\n-> {failure.log}"
        table.add_row(*map(Text, (failure.label, redact(failure.reason), end)))
    return table


def score_table(finished: Iterable[Mapping]) -> Table:
    """Returns a row for each finished run: its best metric on both splits, what it kept, and its cost beside dense."""
    table = Table("run", "metric", "val", "test", "kept", "saved bytes, of dense", "step, of dense")
    for found in finished:
        config, scores, metric = found.get("config") or {}, found.get("scores") or {}, found.get("best_metric")
        label = " ".join(name_of(config, group) for group in ("method", "task"))
        values = [scores.get(f"{split}/{metric}") for split in ("val", "test")]
        values.append((found.get("kept") or {}).get("achieved"))
        cost = found.get("cost") or {}
        shares = [_share(cost, key) for key in ("saved_bytes", "step_seconds")]
        cells = [*(_rounded(value, "{:.4f}") for value in values), *(_rounded(share, "{:.2f} x") for share in shares)]
        table.add_row(*map(Text, (f"{label} s{config.get('seed')}", str(metric), *cells)))
    return table


def _share(cost: Mapping, key: str) -> float | None:
    own, dense = cost.get(key), cost.get(f"{key}_dense")
    return own / dense if isinstance(own, int | float) and isinstance(dense, int | float) and dense else None


def _rounded(value: object, form: str) -> str:
    return form.format(value) if isinstance(value, int | float) else ""
