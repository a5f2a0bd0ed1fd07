"""The tracked records: multirun/records/<name>.csv, one row per finished cell, from which tables are made."""

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from keepfrac.errors import UserError
from keepfrac.reporting.cells import FinishedRun, Problem, kinds, typed
from keepfrac.reporting.files import csv_rows, csv_text, read_text, write_text
from keepfrac.reporting.pooling import without_left_out
from keepfrac.storage.results import multirun

COLUMNS = [field.name for field in fields(FinishedRun)]
# columns that older records do not have
_LATER = {"latency_seconds", "latency_seconds_dense", "pinned", "trained_frac", "unmerged_score", "code", "data"}


def records_path(name: str) -> Path:
    """Returns where the records of that name are: records/<name>.csv under multirun/ (or KEEPFRAC_MULTIRUN).

    Raises:
        UserError: the name is no plain file name.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UserError(f"--record {name!r}: a name has letters, digits, '.', '_' and '-' only.")
    return multirun() / "records" / f"{name}.csv"


def add_records(cells: Iterable[FinishedRun], path: Path) -> tuple[int, int]:
    """Adds finished cells to the records; a cell of the same identity is replaced in its place.

    Returns:
        How many rows were added, and how many replaced.

    Raises:
        UserError: no cell, or the records hold a row that cannot be read, which would be lost.
    """
    new = {cell.identity: cell for cell in cells}
    if not new:
        raise UserError(f"{path}: there is no finished cell to record.")
    rows = {cell.identity: cell for cell in (read_records(path) if path.exists() else [])}
    added = len(new.keys() - rows.keys())
    rows.update(new)
    write_text(path, csv_text(COLUMNS, (_row(cell) for cell in rows.values())))
    return added, len(new) - added


def read_records(path: Path) -> list[FinishedRun]:
    """Returns the cells of a records file.

    Raises:
        UserError: not there, not a records file, or a value that is not of its column's type.
    """
    cells, problems = read_rows(path)
    for problem in problems:
        raise UserError(f"{path}, {problem.cell}: {problem.error}.")
    return cells


def read_rows(path: Path) -> tuple[list[FinishedRun], list[Problem]]:
    """Returns the cells of a records file, and the rows that are none.

    Raises:
        UserError: not there, or not a records file.
    """
    columns, rows = csv_rows(read_text(path))
    if missing := [name for name in COLUMNS if name not in _LATER.union(columns)]:
        raise UserError(f"{path} is not a records file of this version: it has no column {', '.join(missing)}.")
    found = [_cell(row, f"line {number}") for number, row in enumerate(rows, start=2)]
    return [one for one in found if isinstance(one, FinishedRun)], [one for one in found if isinstance(one, Problem)]


def _row(cell: FinishedRun) -> dict[str, Any]:
    return {k: json.dumps(v, sort_keys=True) if isinstance(v, dict) else v for k, v in asdict(cell).items()}


def _cell(row: dict[str, str], line: str) -> FinishedRun | Problem:
    try:
        values = {name: typed(name, _parse(row.get(name, ""), *kind)) for name, kind in kinds().items()}
        return FinishedRun(**values | {"settings": without_left_out(values["settings"], values["seed"])})
    except (ValueError, OverflowError) as error:
        return Problem(line, "unreadable", str(error))


def _parse(text: str, kind: type, may_be_none: bool) -> Any:
    if text == "":
        return None if may_be_none else kind()
    return json.loads(text) if kind is dict else float(text) if kind is int else kind(text)
