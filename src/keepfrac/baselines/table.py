"""One line per method and size of a sweep whose stages go on from one another, baselines among them, as markdown.

    python -m keepfrac.baselines.table multirun/<name>

`python -m src.report` shows the best metric of one stage's arms. Here all stages stand in one table, with the further
metrics of several labels. Cells of one method, keep_frac, number of steps, lr and settings, but for the model that they
began with, are one line, means over its seeds. Where lines of one method and size differ in further settings, their
name says in which.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from keepfrac.errors import UserError
from keepfrac.reporting.cells import Cell, read_sweep
from keepfrac.reporting.statistics import summarise

Value = Callable[[Cell], float | None]


def _score(name: str) -> Value:
    return lambda cell: cell.test_scores.get(name)


NUMBERS: dict[str, tuple[Value, str]] = {
    "kept": (lambda cell: cell.keep_achieved, ".3f"),
    "M parameters": (lambda cell: cell.params and cell.params / 1e6, ".2f"),
    "val": (lambda cell: cell.val_score, ".4f"),
    "test": (lambda cell: cell.test_score, ".4f"),
}
FURTHER: dict[str, tuple[str, str]] = {
    "of it scaled": ("scaled_{metric}", ".4f"),
    "micro F1": ("f1_micro", ".4f"),
    "macro F1": ("f1_macro", ".4f"),
    "mAP": ("map", ".4f"),
    "ECE": ("ece", ".4f"),
}
RECIPE = "method.distill."
LATENCY: tuple[Value, str] = (lambda cell: cell.latency_seconds and 1e3 * cell.latency_seconds, ".2f")


def lines(cells: Iterable[Cell]) -> list[str]:
    """Returns the table of one sweep's finished cells; columns that no cell has are left out.

    Raises:
        UserError: cells of several tasks or metrics.
    """
    groups: dict[tuple, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(_arm(cell), []).append(cell)
    first = next(iter(groups.values()))[0]
    found = {(cell.task, cell.best_metric) for group in groups.values() for cell in group}
    if len(found) > 1:
        raise UserError(
            f"cells of {', '.join(sorted(f'{task} by {metric}' for task, metric in found))}: one is allowed"
        )
    further = {name: (_score(key.format(metric=first.best_metric)), form) for name, (key, form) in FURTHER.items()}
    columns = {**NUMBERS, **further, "ms at batch 1": LATENCY}
    rows = {
        key: {name: summarise(map(value, group)).mean for name, (value, _) in columns.items()}
        for key, group in groups.items()
    }
    shown = [name for name in columns if any(row[name] is not None for row in rows.values())]
    head = ["method", *shown, "sd of test", "n"]
    text = [f"{first.task}, {first.best_metric}", "", _line(head), _line([":--", *["--:"] * (len(head) - 1)])]
    names = _names(groups)
    order = sorted(groups, key=lambda key: -(rows[key]["test"] or 0))
    for key in order:
        values = [_shown(rows[key][name], columns[name][1]) for name in shown]
        spread = summarise(cell.test_score for cell in groups[key]).sd
        text.append(_line([names[key], *values, _shown(spread, ".4f"), str(len(groups[key]))]))
    return text


def _arm(cell: Cell) -> tuple:
    """Returns what two cells share that differ by seed alone."""
    settings = {key: value for key, value in (cell.settings or {}).items() if key != "model.run"}
    further = {**settings, "lr": cell.lr}
    texts = tuple(
        (key, value if isinstance(value, str) else json.dumps(value, default=str))
        for key, value in sorted(further.items())
    )
    return (cell.method, cell.keep_asked, cell.steps, texts)


def _names(arms: Iterable[tuple]) -> dict[tuple, str]:
    """Returns the name of each line: the method, and the settings in which lines of its size differ."""
    alike: dict[tuple, list[tuple]] = {}
    for arm in arms:
        alike.setdefault(arm[:2], []).append(arm)
    names = {}
    for size, some in alike.items():
        common = set.intersection(*(set(arm[3]) for arm in some))
        for arm in some:
            own = {key: text for key, text in arm[3] if (key, text) not in common}
            if RECIPE + "name" in own:  # a teacher: its recipe by name stands for the recipe's settings
                own = {"distill": own[RECIPE + "name"]} | {k: v for k, v in own.items() if not k.startswith(RECIPE)}
            names[arm] = f"{size[0]} ({', '.join(f'{key}={text}' for key, text in own.items())})" if own else size[0]
    return names


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _line(parts: list[str]) -> str:
    escaped = [part.replace("|", r"\|") for part in parts]  # a setting may be a pattern
    return f"| {' | '.join(escaped)} |"


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code: 1, with one line on stderr, where the user must act."""
    parser = argparse.ArgumentParser(prog="python -m keepfrac.baselines.table", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a sweep's folder, multirun/<name>")
    try:
        cells, _ = read_sweep(parser.parse_args(argv).folder)
        if not cells:
            raise UserError("no finished cell there")
        sys.stdout.write("\n".join(lines(cells)) + "\n")
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
