"""Reading and writing files whole, with one clear error, and cells that no spreadsheet takes for formulas."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from keepfrac.errors import UserError
from keepfrac.storage.files import write_atomically

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def write_text(path: Path, text: str) -> Path:
    """Writes `text` atomically and returns `path`.

    Raises:
        UserError: the folder cannot be written to, or the disk is full.
    """
    try:
        write_atomically(path, text)
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror or error}.") from error
    return path


def read_text(path: Path) -> str:
    """Returns the text of a file.

    Raises:
        UserError: it is not there, or not readable as UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Cannot read {path}: {getattr(error, 'strerror', None) or error}.") from error


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Returns rows as csv; a text that a spreadsheet would run as a formula begins with an apostrophe."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _as_text(value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def csv_rows(text: str) -> tuple[list[str], list[dict[str, str]]]:
    """Returns the columns and the rows of what `csv_text` wrote; a cell that is missing is empty."""
    reader = csv.DictReader(io.StringIO(text), restval="")
    return list(reader.fieldnames or ()), [
        {key: value[1:] if value[:1] == "'" and _is_formula(value) else value for key, value in row.items()}
        for row in reader
    ]


def _as_text(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and _is_formula(value) else value


def _is_formula(text: str) -> bool:
    """Whether a spreadsheet would compute a text, apostrophes before it left aside; a number is none."""
    bare = text.lstrip("'")
    try:
        float(bare)
    except ValueError:
        return bare.startswith(_FORMULA)
    return False
