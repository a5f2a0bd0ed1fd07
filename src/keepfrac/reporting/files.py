"""Writing a file whole or not at all, with one clear error."""

from pathlib import Path

from keepfrac.errors import UserError
from keepfrac.storage.files import write_atomically


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
    """The text of a file.

    Raises:
        UserError: it is not there, or not readable as UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Cannot read {path}: {getattr(error, 'strerror', None) or error}.") from error
