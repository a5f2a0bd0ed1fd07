"""The tracked records: multirun/records/<name>.csv, one row per finished cell, from which tables are made."""

import csv
import io
import json
import os
import re
import types
import typing
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from keepfrac.errors import UserError
from keepfrac.reporting.cells import Cell, without_left_out
from keepfrac.reporting.files import read_text, write_text

# columns that older records do not have
_LATER = {"latency_seconds", "latency_seconds_dense", "pinned", "trained_frac", "unmerged_score"}


def records_path(name: str) -> Path:
    """Where the records of that name are: records/<name>.csv under multirun/ (or KEEPFRAC_MULTIRUN).

    Raises:
        UserError: the name is no plain file name.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UserError(f"--record {name!r}: a name has letters, digits, '.', '_' and '-' only.")
    return Path(os.environ.get("KEEPFRAC_MULTIRUN", "multirun")) / "records" / f"{name}.csv"


def record(cells: Iterable[Cell], path: Path) -> tuple[int, int]:
    """Adds finished cells to the records; a cell of the same identity is replaced in its place.

    Returns:
        How many rows were added, and how many replaced.
    """
    rows = {cell.identity: cell for cell in (read_records(path) if path.exists() else [])}
    before = len(rows)
    new = {cell.identity: cell for cell in cells}
    rows.update(new)
    write_text(path, _csv(rows.values()))
    added = len(rows) - before
    return added, len(new) - added


def read_records(path: Path) -> list[Cell]:
    """The cells of a records file.

    Raises:
        UserError: not there, not a records file, or a value that is not of its column's type.
    """
    reader = csv.DictReader(io.StringIO(read_text(path)))
    found = _LATER.union(reader.fieldnames or ())
    missing = [field.name for field in fields(Cell) if field.name not in found]
    if missing:
        raise UserError(f"{path} is not a records file of this version: it has no column {', '.join(missing)}.")
    return [_cell(row, f"{path}, line {number}") for number, row in enumerate(reader, start=2)]


def _csv(cells: Iterable[Cell]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Cell)], lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _text(value) for key, value in asdict(cell).items()} for cell in cells)
    return text.getvalue()


def _text(value: Any) -> Any:
    return json.dumps(value, sort_keys=True) if isinstance(value, dict) else value


def _cell(row: dict[str, str], where: str) -> Cell:
    try:
        values = {name: _parse(row.get(name, ""), kind) for name, kind in _kinds().items()}
        return Cell(**values | {"settings": without_left_out(values["settings"] or {}, values["seed"])})
    except (ValueError, TypeError) as error:
        raise UserError(f"{where}: {error}.") from error


def _kinds() -> dict[str, type]:
    """Column -> float, int, str or dict ("float | None" counts as float)."""
    kinds = {}
    for name, hint in typing.get_type_hints(Cell).items():
        if isinstance(hint, types.UnionType):
            hint = next(part for part in typing.get_args(hint) if part is not types.NoneType)
        kinds[name] = typing.get_origin(hint) or hint
    return kinds


def _parse(text: str, kind: type) -> Any:
    """A value from its text; no text is None."""
    if text == "":
        return None
    if kind is dict:
        return json.loads(text)
    return int(float(text)) if kind is int else kind(text)
