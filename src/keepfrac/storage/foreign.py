"""Errors of code that is no part of this project, such as a user's own method: where in that code they arose."""

import sys
import traceback
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
LIBRARIES = (sys.prefix, sys.base_prefix, "<")
OPEN_TO_USERS = tuple(str(PACKAGE / name) for name in ("methods", "tasks"))
"""Folders of the package that a user's own class may lie in."""
LONGEST = 100
"""Characters of a line of code that are shown."""


def own_line(error: BaseException) -> str | None:
    """Returns `file:line, in function: code` of the user's own code that an error arose in; None: of no such code.

    That is the innermost line outside of libraries and of this package, or else in the package's methods and tasks.
    """
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        return None if error.filename.startswith(LIBRARIES) else _shown(error.filename, error.lineno, error.text)
    frames = [one for one in traceback.extract_tb(error.__traceback__) if not one.filename.startswith(LIBRARIES)]
    outside = [one for one in frames if not one.filename.startswith(str(PACKAGE)) and Path(one.filename) != _main()]
    found = outside or [one for one in frames if one.filename.startswith(OPEN_TO_USERS)]
    if not found:
        return None
    last = found[-1]
    return _shown(last.filename, last.lineno or 0, last.line, last.name)


def _main() -> Path:
    """The command of the clone, which is below every traceback."""
    return PACKAGE.parent / "main.py"


def _shown(file: str, line: int, code: str | None, name: str = "") -> str:
    path = Path(file)
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    text = " ".join((code or "").split())
    text = text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
    return f"{shown}:{line}" + (f", in {name}" if name and name != "<module>" else "") + (f": {text}" if text else "")


def told(error: BaseException) -> str:
    """Returns an unexpected error in one line: its type, its text, and the user's own line where there is one."""
    said = error.msg if isinstance(error, SyntaxError) else error
    text, line = " ".join(f"{type(error).__name__}: {said}".split()), own_line(error)
    return text if line is None else f"{text} ({line})"
