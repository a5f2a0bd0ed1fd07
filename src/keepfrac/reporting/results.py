"""Tables made from the records, put between their markers in a document, so that no table is typed.

multirun/RESULTS.md holds all of them: after `<!-- table:NAME -->` stands the report's table of
multirun/records/NAME.csv, after `<!-- stages:NAME -->` that of all stages.
"""

import re
from pathlib import Path

from keepfrac.errors import UserError
from keepfrac.reporting import stages
from keepfrac.reporting.build import of_records
from keepfrac.reporting.files import read_text, write_text
from keepfrac.reporting.records import read_records

_OPENING = re.compile(r"^<!-- (table|stages):([\w.-]+) -->$", re.MULTILINE)


def results(text: str, records: Path) -> str:
    """Returns a document with each of its tables generated again.

    Args:
        text: the document.
        records: the folder of the records files.

    Raises:
        UserError: the records of a table are not there.
    """
    for kind, name in _OPENING.findall(text):
        path = records / f"{name}.csv"
        table = of_records(path).table() if kind == "table" else stages.table(read_records(path))
        text = _with_table(text, kind, name, table)
    return text


def write(path: Path) -> bool:
    """Generates the tables of a document from the folder records/ next to it; returns whether it changed.

    Raises:
        UserError: the document, or the records of a table, are not there.
    """
    old = read_text(path)
    return _write(path, old, results(old, path.parent / "records"))


def replace_table(path: Path, name: str, table: str) -> bool:
    """Puts one table between its markers in a document; returns whether it changed.

    Raises:
        UserError: the markers are not in the file.
    """
    old, markers = read_text(path), (f"<!-- table:{name} -->", f"<!-- /table:{name} -->")
    if not all(marker in old for marker in markers):
        raise UserError(f"{path} has no place for this table: add the two lines {' and '.join(markers)}.")
    return _write(path, old, _with_table(old, "table", name, table))


def _with_table(text: str, kind: str, name: str, table: str) -> str:
    opening, closing = f"<!-- {kind}:{name} -->", f"<!-- /{kind}:{name} -->"
    between = re.compile(f"{re.escape(opening)}.*?{re.escape(closing)}", re.DOTALL)
    return between.sub(lambda _: f"{opening}\n{table.strip()}\n{closing}", text)


def _write(path: Path, old: str, new: str) -> bool:
    if new != old:
        write_text(path, new)
    return new != old
