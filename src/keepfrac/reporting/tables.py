"""Arms as tables in markdown and csv, with notes on what limits a comparison."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, is_dataclass

from keepfrac.reporting.arms import Arm, group_of, grouped
from keepfrac.reporting.cells import FinishedRun, Problem
from keepfrac.reporting.files import csv_text
from keepfrac.reporting.statistics import Difference, Sample, accuracy_error

LEFT = {"method", "of what", "cell", "status", "error"}  # columns of words
_LONGEST_ERROR = 300
_LONGEST_VARIANT = 14
_NONZERO_SHARE = 0.98  # a share of nonzeros above it is of embeddings that were never trained
_SMALLER = 0.99  # heads of tasks alone differ by less
MEANS = (
    "Means over n seeds; sd is their standard deviation, se = sd / sqrt(n). Validation chooses (the checkpoint, and "
    "the lr where several were tried); the test score chooses nothing."
)
DIFFERENCES = (
    "Minus dense: test score less that of nosp at the same seed, each at its own chosen lr; mean over the shared "
    "seeds with a 95 % t interval ('-' with fewer than two)."
)
_HINDSIGHT = (
    "In brackets: the best of the rates on the test set itself, for comparison with tables that were chosen so; it"
    " flatters, and nothing here is decided by it."
)
_SHARES_OF_ROWS = ("accuracy", "acc_and_f1")
Columns = dict[str, Callable[[Arm], str]]


def heading(arms: Sequence[Arm]) -> str:
    """Returns the title of a group of comparable arms: task, model, the common keys that vary."""
    first = arms[0]
    return ", ".join(part for part in (first.task, short(first.model), first.setup) if part)


def short(model: str) -> str:
    """Returns a model's name without its owner."""
    return model.rstrip("/").rpartition("/")[2]


def lines(arms: Sequence[Arm]) -> list[dict[str, str]]:
    """Returns one row of text per arm of a table: column -> cell; '-' for what is unknown."""
    columns = _usual(arms[0].metric) | _further(arms)
    return [{name: show(arm) for name, show in columns.items()} for arm in arms]


def _usual(metric: str) -> Columns:
    return {
        "method": lambda arm: arm.label,
        "keep asked": lambda arm: number(arm.keep_asked, "{:g}"),
        "achieved": lambda arm: number(arm.keep_achieved, "{:.4f}"),
        "of what": what,
        "lr": _lr,
        f"test {metric}": lambda arm: number(arm.test.mean, "{:.4f}"),
        "sd": lambda arm: number(arm.test.sd, "{:.4f}"),
        "se": lambda arm: number(arm.test.se, "{:.4f}"),
        "n": lambda arm: str(arm.test.n),
        "minus dense [95% CI]": lambda arm: _difference(arm.difference),
        "saved (to dense)": lambda arm: _with_ratio(number(arm.saved_bytes.mean, "{:.1f} MiB", 2**20), arm.saved_ratio),
        "step (to dense)": lambda arm: _with_ratio(_duration(arm.step_seconds.mean), arm.step_ratio),
    }


def _further(arms: Sequence[Arm]) -> Columns:
    """Columns that only some tables need: sizes where they differ, an adapter's figures, several rates."""
    columns: Columns = {}
    if len({arm.params for arm in arms}) > 1:
        columns["params"] = lambda arm: number(arm.params, "{:.2f} M", 1e6)
    if any(arm.nonzeros and arm.params and arm.nonzeros < _NONZERO_SHARE * arm.params for arm in arms):
        columns["nonzeros"] = lambda arm: number(arm.nonzeros, "{:.2f} M", 1e6)
    if of_several_sizes(arms):
        columns["latency to dense"] = lambda arm: number(arm.latency_ratio.mean, "{:.2f}x")
    if any(arm.trained_frac is not None for arm in arms):
        columns["trained"] = lambda arm: number(arm.trained_frac, "{:.2f} %", 0.01)
    if any(arm.unmerged.mean is not None for arm in arms):
        columns["before merging"] = lambda arm: number(arm.unmerged.mean, "{:.4f}")
    if _tried(arms):
        columns["training"] = lambda arm: number(arm.train_seconds.mean, "{:.0f} s")
        columns["[best on test]"] = lambda arm: number(arm.hindsight, f"[{{:.4f}}, of {arm.lrs_tried}]")
    return columns


def of_several_sizes(arms: Sequence[Arm]) -> bool:
    """Returns whether the delivered models differ in their number of parameters by more than a task's head."""
    known = [arm.params for arm in arms if arm.params]
    return bool(known) and min(known) < _SMALLER * max(known)


def _tried(arms: Iterable[Arm]) -> list[int]:
    return sorted({arm.lrs_tried for arm in arms if arm.lrs_tried > 1 and arm.lr_chosen})


def what(arm: Arm) -> str:
    """Returns the unit of keep and what it is a fraction of."""
    return ", of ".join(part for part in (arm.unit, arm.of) if part) or "-"


def letters(arms: Sequence[Arm]) -> dict[str, str]:
    """Returns a letter for each variant whose name is too long for a narrow column."""
    long = dict.fromkeys(arm.variant for arm in arms if len(arm.variant) > _LONGEST_VARIANT)
    return {variant: f"({chr(ord('a') + index)})" for index, variant in enumerate(long)}


def number(value: float | None, form: str, unit: float = 1) -> str:
    """Returns a value by its format, in a unit; '-' for None."""
    return "-" if value is None else form.format(value / unit)


def _duration(seconds: float | None) -> str:
    return number(seconds, "{:.2f} s") if seconds is None or seconds >= 1 else number(seconds, "{:.3g} ms", 1e-3)


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


def notes(arms: Sequence[Arm], cells: Sequence[FinishedRun], repeated: int = 0) -> list[str]:
    """Returns what a reader must know to read the table rightly.

    Args:
        arms: the lines of the tables.
        cells: the runs behind them.
        repeated: how many runs repeat another one's seed.
    """
    found = [MEANS, *_lr_notes(arms)]
    if any(arm.difference for arm in arms):
        found.append(DIFFERENCES)
    found += _one_test_set(arms) + _unit_notes(arms)
    for arm in arms:
        which = f"{arm.label} at {number(arm.keep_asked, '{:g}')} ({heading([arm])})"
        if arm.fallbacks:
            found.append(f"{which}: {arm.fallbacks} sites fell back to dense.")
        if arm.pinned:
            found.append(f"{which}: {arm.pinned} linears stay dense: attention saves their input itself.")
    if repeated:
        found.append(f"{repeated} cells repeat a seed of the same arm and lr; the one begun last counts.")
    return found + _data_notes(cells) + _measured(cells)


def _lr_notes(arms: Sequence[Arm]) -> list[str]:
    found = []
    if tried := _tried(arms):
        found.append(
            f"lr: per arm, the best mean validation score over seeds among {' or '.join(map(str, tried))} tried "
            "(those with the most finished seeds)."
        )
    if any(not arm.lr_chosen for arm in arms):
        found.append("lr (not chosen): without a validation score nothing may choose, so each lr has its own line.")
    return found + [_HINDSIGHT] * bool(tried)


def _one_test_set(arms: Sequence[Arm]) -> list[str]:
    """The error that seeds do not show: that of the one test set that all of them share."""
    found = []
    for group in grouped(arms, group_of).values():
        arm, error = group[0], standard_error(group)
        if arm.metric == "accuracy" and error is not None:
            found.append(
                f"{heading(group)}: one test set of {arm.test_rows} rows; its own standard error, which seeds "
                f"do not show, is sqrt(p(1-p)/{arm.test_rows}) = {error:.4f} at p = {arm.test.mean:.4f}."
            )
    return found


def standard_error(arms: Sequence[Arm]) -> float | None:
    """Returns the standard error of the first arm's score on the test set that all arms of a table share.

    It is that of an accuracy, also for the mean of accuracy and F1; None where the metric is another one.
    """
    first = arms[0]
    if first.metric not in _SHARES_OF_ROWS or not first.test_rows or first.test.mean is None:
        return None
    return accuracy_error(first.test.mean, first.test_rows)


def _unit_notes(arms: Sequence[Arm]) -> list[str]:
    units = sorted({arm.unit or "not stated" for arm in arms if not arm.is_dense})
    if len(units) < 2:
        return []
    return [f"keep counts unlike things here ({'; '.join(units)}): they are not comparable and never share an axis."]


def _data_notes(cells: Sequence[FinishedRun]) -> list[str]:
    """Where the data of a task was changed between its cells."""
    found: dict[str, set[str]] = {}
    for cell in cells:
        if "data" in cell.settings:
            found.setdefault(cell.task, set()).add(cell.settings["data"])
    return [
        f"{task}: made on {len(several)} versions of its data ({', '.join(sorted(several))}), which are neither pooled "
        "nor compared with one another."
        for task, several in found.items()
    ]


def _made_by(cells: Sequence[FinishedRun]) -> list[str]:
    """What code the cells were made by, where it is not the same."""
    made = Counter(cell.code or "a version that kept none" for cell in cells)
    if len(made) < 2:
        return []
    shown = ", ".join(f"{code} ({count})" for code, count in made.most_common())
    return [f"Made by {len(made)} versions of the code: {shown}; rerun=changed runs the older cells again."]


def _measured(cells: Sequence[FinishedRun]) -> list[str]:
    probes = sorted({cell.probe for cell in cells if cell.probe})
    places = {", ".join(filter(None, (c.device, c.precision, c.torch and f"torch {c.torch}"))) for c in cells}
    cost = [f"Saved for backward and step time: on a probe of {'; '.join(probes)}."] if probes else []
    return _made_by(cells) + cost + [f"Run on: {'; '.join(filter(None, sorted(places)))}."] * any(places)


def table_csv(arms: Iterable[Arm]) -> str:
    """Returns all numbers, unrounded, one row per arm."""
    rows = [_flat(arm) for arm in arms]
    return csv_text(list(rows[0]) if rows else [], rows)


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
    """Returns text that stays in its cell of a markdown table and is not taken for HTML."""
    return " ".join(text.replace("<", "&lt;").replace("|", "\\|").split())


def markdown_table(rows: Sequence[dict[str, str]]) -> str:
    """Returns rows of text as a markdown table."""
    columns = list(rows[0])
    rule = [":--" if column in LEFT else "--:" for column in columns]
    body = [[escape(row[column]) for column in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in [[escape(c) for c in columns], rule, *body])


def markdown(arms: Sequence[Arm], remarks: Sequence[str]) -> str:
    """Returns one table per group under its heading, then the notes."""
    parts = [
        f"**{escape(heading(group))}**\n\n{markdown_table(lines(group))}" for group in grouped(arms, group_of).values()
    ]
    return "\n\n".join([*parts, "\n".join(f"- {escape(remark)}" for remark in remarks)]) + "\n"


def problem_lines(problems: Sequence[Problem]) -> list[dict[str, str]]:
    """Returns the cells without a result, as rows of text."""
    return [{"cell": p.cell, "status": p.status, "error": p.error[:_LONGEST_ERROR] or "-"} for p in problems]
