"""Arms as tables: for the terminal (rich), markdown and csv, with the notes that make them honest."""

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, is_dataclass

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from keepfrac.reporting.arms import Arm, grouped
from keepfrac.reporting.cells import Cell, Problem
from keepfrac.reporting.columns import HINDSIGHT, further, tried
from keepfrac.reporting.statistics import Difference, Sample, accuracy_error

_LEFT = {"method", "of what", "cell", "status", "error"}
_LONGEST_ERROR = 300
_NARROW = 150  # a terminal of fewer columns is shown fewer numbers
_LEFT_OUT_WHERE_NARROW = ("lr", "se")
_MEANS = (
    "Means over n seeds; sd is their standard deviation, se = sd / sqrt(n). Validation chooses (the checkpoint, and "
    "the lr where several were tried); the test score chooses nothing."
)
_DIFFERENCES = (
    "Minus dense: test score less that of nosp at the same seed, each at its own chosen lr; mean over the shared "
    "seeds with a 95 % t interval ('-' with fewer than two)."
)


def heading(arms: Sequence[Arm]) -> str:
    """The title of a group of comparable arms: task, model, the common keys that vary."""
    first = arms[0]
    return ", ".join(part for part in (first.task, short(first.model), first.setup) if part)


def short(model: str) -> str:
    """A model's name without its owner."""
    return model.rstrip("/").rpartition("/")[2]


def lines(arms: Sequence[Arm]) -> list[dict[str, str]]:
    """One row of text per arm: column -> what stands in it. Numbers that are not known are '-'."""
    return [_line(arm) | more for arm, more in zip(arms, further(arms), strict=True)]


def _line(arm: Arm) -> dict[str, str]:
    return {
        "method": arm.label,
        "keep asked": number(arm.keep_asked, "{:g}"),
        "achieved": number(arm.keep_achieved, "{:.4f}"),
        "of what": what(arm),
        "lr": _lr(arm),
        f"test {arm.metric}": number(arm.test.mean, "{:.4f}"),
        "sd": number(arm.test.sd, "{:.4f}"),
        "se": number(arm.test.se, "{:.4f}"),
        "n": str(arm.test.n),
        "minus dense [95% CI]": _difference(arm.difference),
        "saved (to dense)": _with_ratio(number(arm.saved_bytes.mean, "{}", megabytes), arm.saved_ratio),
        "step (to dense)": _with_ratio(number(arm.step_seconds.mean, "{}", duration), arm.step_ratio),
    }


def what(arm: Arm) -> str:
    """The unit of keep and what it is a fraction of."""
    return ", of ".join(part for part in (arm.unit, arm.of) if part) or "-"


def number(value: float | None, form: str, convert: Callable = float) -> str:
    """A value by its format, '-' for None."""
    return "-" if value is None else form.format(convert(value))


def megabytes(size: float) -> str:
    """Bytes as MiB."""
    return f"{size / 2**20:.1f} MiB"


def duration(seconds: float) -> str:
    """Seconds as s or ms."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"


def _with_ratio(text: str, ratio: Sample) -> str:
    return text if ratio.mean is None else f"{text} ({ratio.mean:.2f}x)"


def _lr(arm: Arm) -> str:
    if arm.lrs_tried == 1 or arm.lr is None:
        return number(arm.lr, "{:g}")
    return f"{arm.lr:g} (of {arm.lrs_tried})" if arm.lr_chosen else f"{arm.lr:g} (not chosen)"


def _difference(difference: Difference | None) -> str:
    if difference is None:
        return "-"
    interval = "-" if difference.low is None else f"[{difference.low:+.4f}, {difference.high:+.4f}]"
    pairs = "" if difference.n > 1 else " (1 pair)"
    return f"{difference.mean:+.4f} {interval}{pairs}"


def notes(arms: Sequence[Arm], cells: Sequence[Cell], repeated: int = 0) -> list[str]:
    """What a reader must know to read the table rightly."""
    found = [_MEANS, *_lr_notes(arms), *([HINDSIGHT] if tried(arms) else [])]
    if any(arm.difference for arm in arms):
        found.append(_DIFFERENCES)
    found += _one_test_set(arms) + _unit_notes(arms)
    for arm in arms:
        place = f"{arm.label} at {number(arm.keep_asked, '{:g}')} ({heading([arm])})"
        if arm.fallbacks:
            found.append(f"{place}: {arm.fallbacks} sites fell back to dense.")
        if arm.pinned:
            found.append(f"{place}: {arm.pinned} linears stay dense: attention saves their input itself.")
    if repeated:
        found.append(f"{repeated} cells repeat a seed of the same arm and lr; the one begun last counts.")
    return found + _measured(cells)


def _lr_notes(arms: Sequence[Arm]) -> list[str]:
    tried = sorted({arm.lrs_tried for arm in arms if arm.lrs_tried > 1 and arm.lr_chosen})
    undecided = any(not arm.lr_chosen for arm in arms)
    chosen = (
        f"lr: per arm, the best mean validation score over seeds among {' or '.join(map(str, tried))} tried "
        "(those with the most finished seeds)."
    )
    unknown = "lr (not chosen): without a validation score nothing may choose, so each lr has its own line."
    return [chosen] * bool(tried) + [unknown] * undecided


def _one_test_set(arms: Sequence[Arm]) -> list[str]:
    """The error that seeds do not show: that of the one test set that all of them share."""
    found = []
    for members in grouped(arms).values():
        arm = members[0]
        if arm.metric == "accuracy" and arm.test_rows and arm.test.mean is not None:
            error = accuracy_error(arm.test.mean, arm.test_rows)
            found.append(
                f"{heading(members)}: one test set of {arm.test_rows} rows; its own standard error, which seeds "
                f"do not show, is sqrt(p(1-p)/{arm.test_rows}) = {error:.4f} at p = {arm.test.mean:.4f}."
            )
    return found


def _unit_notes(arms: Sequence[Arm]) -> list[str]:
    units = sorted({arm.unit or "not stated" for arm in arms if not arm.is_dense})
    if len(units) < 2:
        return []
    return [f"keep counts unlike things here ({'; '.join(units)}): they are not comparable and never share an axis."]


def _measured(cells: Sequence[Cell]) -> list[str]:
    probes = sorted({cell.probe for cell in cells if cell.probe})
    places = sorted(
        {", ".join(filter(None, (cell.device, cell.precision, cell.torch and f"torch {cell.torch}"))) for cell in cells}
    )
    cost = [f"Saved for backward and step time: on a probe of {'; '.join(probes)}."] if probes else []
    return cost + [f"Run on: {'; '.join(filter(None, places))}."] * any(places)


def table_csv(arms: Iterable[Arm]) -> str:
    """All numbers, unrounded, one row per arm."""
    rows = [_flat(arm) for arm in arms]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _flat(arm: Arm) -> dict[str, object]:
    """Column -> value; a `Sample` gives _n, _mean, _sd, _se, and a missing `Difference` its empty columns."""
    row: dict[str, object] = {}
    for field in fields(arm):
        value = getattr(arm, field.name)
        if field.name == "difference":
            row |= {f"difference_{key}": getattr(value, key, None) for key in ("n", "mean", "low", "high")}
        elif is_dataclass(value):
            row |= {f"{field.name}_{part.name}": getattr(value, part.name) for part in fields(value)}
        else:
            row[field.name] = " ".join(map(str, value)) if isinstance(value, tuple) else value
    return row


def escape(text: str) -> str:
    """Text that stays in its cell of a markdown table and is not taken for HTML."""
    return " ".join(text.replace("<", "&lt;").replace("|", "\\|").split())


def markdown_table(rows: Sequence[dict[str, str]]) -> str:
    """Rows of text as a markdown table."""
    columns = list(rows[0])
    rule = [":--" if column in _LEFT else "--:" for column in columns]
    body = [[escape(row[column]) for column in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in [[escape(c) for c in columns], rule, *body])


def markdown(arms: Sequence[Arm], remarks: Sequence[str]) -> str:
    """One table per group under its heading, then the notes."""
    parts = [f"**{escape(heading(group))}**\n\n{markdown_table(lines(group))}" for group in grouped(arms).values()]
    return "\n\n".join([*parts, "\n".join(f"- {escape(remark)}" for remark in remarks)]) + "\n"


def problem_lines(problems: Sequence[Problem]) -> list[dict[str, str]]:
    """The cells without a result, as rows of text."""
    return [{"cell": p.cell, "status": p.status, "error": p.error[:_LONGEST_ERROR] or "-"} for p in problems]


def on_terminal(console: Console, arms: Sequence[Arm], remarks: Sequence[str], problems: Sequence[Problem]) -> None:
    """Prints the tables. What keep counts is a letter, explained below its table: the words are long."""
    for members in grouped(arms).values():
        rows = lines(members)
        legend: dict[str, str] = {}
        for row in rows:
            row["of what"] = _letter(row["of what"], legend)
        if console.width < _NARROW:
            rows = [{k: v for k, v in row.items() if k not in _LEFT_OUT_WHERE_NARROW} for row in rows]
        explained = [Text(f"  {letter}: {words}", style="dim") for words, letter in legend.items()]
        console.print(Group(_rich(heading(members), rows), *explained))
    for remark in remarks:
        console.print(Text(f"- {remark}", style="dim"))
    if problems:
        console.print(_rich(f"Cells without a result: {len(problems)}", problem_lines(problems)))


def _letter(words: str, legend: dict[str, str]) -> str:
    return words if words == "-" else legend.setdefault(words, chr(ord("a") + len(legend)))


def _rich(title: str, rows: Sequence[dict[str, str]]) -> Table:
    table = Table(
        title=Text(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    for column in rows[0]:
        table.add_column(Text(column), justify="left" if column in _LEFT else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(value) for value in row.values()))
    return table
