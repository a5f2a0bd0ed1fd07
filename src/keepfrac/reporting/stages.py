"""One line per method and size of a sweep whose stages go on from one another, baselines among them, as markdown.

    python -m src.baselines.table multirun/<name>

`python -m src.report` shows the best metric of one stage's arms. Here all stages stand in one table, with the further
metrics of several labels. Cells of one method, keep_frac, number of steps, lr and settings, but for the model that they
began with, are one line, means over its seeds. Where lines of one method and size differ in further settings, their
name says in which.
"""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from keepfrac.errors import UserError
from keepfrac.reporting.arms import differing, grouped, told_apart
from keepfrac.reporting.cells import FinishedRun, read_sweep
from keepfrac.reporting.statistics import summarise
from keepfrac.reporting.tables import markdown_table, number
from keepfrac.storage.commands import Parser, complain

RECIPE = "method.distill."
Value = Callable[[FinishedRun], float | None]


def _score(name: str) -> Value:
    return lambda cell: cell.test_scores.get(name.format(metric=cell.best_metric))


COLUMNS: dict[str, tuple[Value, str]] = {
    "kept": (lambda cell: cell.keep_achieved, "{:.3f}"),
    "M parameters": (lambda cell: cell.params and cell.params / 1e6, "{:.2f}"),
    "val": (lambda cell: cell.val_score, "{:.4f}"),
    "test": (lambda cell: cell.test_score, "{:.4f}"),
    "of it scaled": (_score("scaled_{metric}"), "{:.4f}"),
    "micro F1": (_score("f1_micro"), "{:.4f}"),
    "macro F1": (_score("f1_macro"), "{:.4f}"),
    "mAP": (_score("map"), "{:.4f}"),
    "ECE": (_score("ece"), "{:.4f}"),
    "ms at batch 1": (lambda cell: cell.latency_seconds and 1e3 * cell.latency_seconds, "{:.2f}"),
}


def table(cells: Sequence[FinishedRun]) -> str:
    """Returns the table of one sweep's finished cells; columns that no cell has are left out.

    Raises:
        UserError: no cell, or cells of several tasks or metrics.
    """
    if not cells:
        raise UserError("no finished cell there")
    found = sorted({f"{cell.task} by {cell.best_metric}" for cell in cells})
    if len(found) != 1:
        raise UserError(f"cells of {', '.join(found)}: one task and metric is allowed")
    cells = told_apart(cells)
    stages = list(grouped(cells, _stage).values())
    means = [{name: summarise(map(value, stage)).mean for name, (value, _) in COLUMNS.items()} for stage in stages]
    shown = [name for name in COLUMNS if any(mean[name] is not None for mean in means)]
    rows = []
    for mean, name, stage in sorted(
        zip(means, _names(stages), stages, strict=True), key=lambda one: -(one[0]["test"] or 0)
    ):
        sd = number(summarise(cell.test_score for cell in stage).sd, "{:.4f}")
        values = {column: number(mean[column], COLUMNS[column][1]) for column in shown}
        rows.append({"method": name, **values, "sd of test": sd, "n": str(len(stage))})
    return markdown_table(rows)


def _settings(cell: FinishedRun) -> dict[str, Any]:
    return {key: value for key, value in cell.settings.items() if key != "model.run"} | {"lr": cell.lr}


def _stage(cell: FinishedRun) -> tuple:
    """What two cells share that differ by seed alone."""
    return cell.method, cell.keep_asked, cell.steps, json.dumps(_settings(cell), sort_keys=True)


def _names(stages: Sequence[Sequence[FinishedRun]]) -> list[str]:
    """The name of each line: the method, and the settings in which lines of its size differ."""
    alike = grouped((stage[0] for stage in stages), lambda cell: (cell.method, cell.keep_asked))
    names = []
    for first in (stage[0] for stage in stages):
        keys = differing([_settings(cell) for cell in alike[first.method, first.keep_asked]])
        if RECIPE + "name" in keys:  # a teacher: its recipe by name stands for the recipe's settings
            keys = ["distill", *(key for key in keys if not key.startswith(RECIPE))]
        own = _settings(first)
        own["distill"] = own.get(RECIPE + "name")
        shown = ", ".join(f"{key}={own[key]}" for key in keys if own.get(key) is not None)
        names.append(f"{first.method} ({shown})" if shown else first.method)
    return names


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code: 1, with one line on stderr, where the user must act."""
    parser = Parser(prog="python -m src.baselines.table", description=str(__doc__).splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a sweep's folder, multirun/<name>")
    try:
        cells, _ = read_sweep(parser.parse_args(argv).folder)
        made = table(cells)
        sys.stdout.write(f"{cells[0].task}, {cells[0].best_metric}\n\n{made}\n")
    except UserError as error:
        return complain(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
