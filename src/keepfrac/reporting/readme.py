"""Puts a table made from records between its markers in a markdown file, so that no table is typed."""

import re
from pathlib import Path

from keepfrac.errors import UserError
from keepfrac.reporting.files import read_text, write_text


def replace_table(path: Path, name: str, table: str) -> bool:
    """Replaces the text between `<!-- table:NAME -->` and `<!-- /table:NAME -->`.

    Returns:
        Whether the file changed.

    Raises:
        UserError: the markers are not in the file.
    """
    old = read_text(path)
    opening, closing = f"<!-- table:{name} -->", f"<!-- /table:{name} -->"
    between = re.compile(f"{re.escape(opening)}.*?{re.escape(closing)}", re.DOTALL)
    new, count = between.subn(lambda _: f"{opening}\n{table.strip()}\n{closing}", old)
    if not count:
        raise UserError(f"{path} has no place for this table: add the two lines {opening} and {closing}.")
    if new != old:
        write_text(path, new)
    return new != old
