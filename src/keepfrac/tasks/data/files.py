"""A user's own tables: csv, tsv and jsonl files with named columns; errors name the file and the line."""

import csv
import json
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keepfrac.errors import DataMissing, UserError

SUFFIXES = (".csv", ".tsv", ".jsonl")
_NEED_QUOTES, _EXCEL_QUOTES = '\t\n\r"', '\t\n\r",'


@dataclass(frozen=True)
class OwnFiles:
    """The files that a user names as task.train_file, task.validation_file and task.test_file.

    Args:
        paths: by set, of those that are named.
    """

    paths: dict[str, Path]

    @classmethod
    def of(cls, settings: Any) -> "OwnFiles":
        """Returns those of a task's settings."""
        given = {split: getattr(settings, f"{split}_file") for split in ("train", "validation", "test")}
        return cls({split: Path(file).expanduser() for split, file in given.items() if file})

    @classmethod
    def needed(cls, settings: Any) -> "OwnFiles":
        """Returns those of a task that has no other source.

        Raises:
            UserError: no training file is named.
        """
        if not settings.train_file:
            allowed = ", ".join(SUFFIXES[:-1]) + f" or {SUFFIXES[-1]}"
            raise UserError(f"task {settings.name}: type task.train_file=<your {allowed} file>")
        return cls.of(settings)

    @property
    def source(self) -> str:
        """All of them, in words."""
        return "files " + ", ".join(map(str, self.paths.values()))

    @property
    def names(self) -> dict[str, str]:
        """What the user calls each set."""
        return {split: f"task.{split}_file={path}" for split, path in self.paths.items()}


@dataclass(frozen=True)
class Table:
    """Texts of a file by column, before labels are numbers.

    Args:
        path: of the file.
        columns: what a column is for ("text", "text_pair", "label") -> its values, strings.
        lines: where each row ends in the file, from 1.
        trimmed: how many labels had blanks around them.
        in_marks: how many texts stand between quotation marks that were kept, the file not being quoted throughout.
    """

    path: Path
    columns: dict[str, list[str]]
    lines: list[int]
    trimmed: int = 0
    in_marks: int = 0

    def error(self, row: int, fault: str) -> UserError:
        """Returns an error that names the file and the line of a row."""
        return UserError(f"{self.path}, line {self.lines[row]}: {fault}")


def text_columns(text: str, text_pair: str | None, label: str) -> dict[str, str]:
    """Returns what a column is for -> its name, of the columns that there are."""
    named = {"text": text, "text_pair": text_pair, "label": label}
    return {purpose: column for purpose, column in named.items() if column is not None}


def read_table(path: Path, columns: Mapping[str, str]) -> Table:
    """Reads the columns that are asked for; everything is text, "null", "NA" and the empty string too.

    Args:
        path: a .csv (quoted, commas), .tsv (tabs; quoted where `is_quoted` finds it so) or .jsonl file, UTF-8.
        columns: what a column is for -> its name in the file.
    """
    records = read_csv_rows(path)
    values: dict[str, list[str]] = {purpose: [] for purpose in columns}
    lines = []
    for line, record in records:
        for purpose, column in columns.items():
            if column not in record:
                raise UserError(f"{path}, line {line}: no column {column!r}; there are {_listed(record)}")
            values[purpose].append(_text(path, line, column, purpose, record[column]))
        lines.append(line)
    labels = values.get("label", [])
    trimmed = [label.strip() for label in labels]
    changed = sum(before != after for before, after in zip(labels, trimmed, strict=True))
    return Table(
        path, values | ({"label": trimmed} if labels else {}), lines, changed, _in_marks(path, values.get("text", []))
    )


def _in_marks(path: Path, texts: list[str]) -> int:
    """Returns how many texts of a .tsv file stand between quotation marks that are not the file's way of quoting."""
    found = sum(len(text) > 1 and text[0] == text[-1] == '"' for text in texts) if path.suffix == ".tsv" else 0
    return 0 if found and is_quoted(read_text(path)) else found


def read_csv_rows(path: Path) -> Iterator[tuple[int, dict]]:
    """Yields (line, column -> value) of a .csv, .tsv or .jsonl file.

    Raises:
        UserError: another kind of file, or one that cannot be read; the line is named.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: allowed are files ending in {', '.join(SUFFIXES)}")
    return _json_records(path) if path.suffix == ".jsonl" else _separated_records(path)


def _listed(names) -> str:
    return ", ".join(repr(name) for name in names if name is not None) or "none"


def _text(path: Path, line: int, column: str, purpose: str, value) -> str:
    """Returns a value as text; numbers and truth values are labels only."""
    if isinstance(value, str):
        return value
    if purpose == "label" and isinstance(value, (bool, int, float)):
        return str(value)
    found = "no value" if value is None else f"{value!r}"
    raise UserError(f"{path}, line {line}: column {column!r} holds {found}; allowed is text")


def read_text(path: Path) -> str:
    """Returns a file's text, UTF-8 with or without a byte order mark.

    Raises:
        DataMissing: there is no such file.
        UserError: it cannot be read, or is not UTF-8; the line is named.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for, and is empty when read again
            raise UserError(f"{path}: cannot be read (a folder, a pipe or a device; allowed is a file)")
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataMissing(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        wrong = error.object[error.start]
        raise UserError(f"{path}, line {line}: byte 0x{wrong:02x} is not UTF-8; save the file as UTF-8") from None


def split_lines(text: str) -> list[str]:
    """Returns the lines of `text`: ended by newlines alone, since sentences may hold other separators."""
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def _separated_records(path: Path) -> Iterator[tuple[int, dict]]:
    """Yields (line, column -> value); a short row has None where values are missing."""
    csv.field_size_limit(2**31 - 1)
    text = read_text(path)
    if path.suffix == ".tsv" and not is_quoted(text):
        reader = csv.DictReader(split_lines(text), delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        reader = csv.DictReader(_kept_ends(text), delimiter="," if path.suffix == ".csv" else "\t", strict=True)
    try:
        for record in reader:
            if None in record:
                raise UserError(f"{path}, line {reader.line_num}: more values than the {len(record) - 1} columns")
            yield reader.line_num, record
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}") from error


def is_quoted(text: str) -> bool:
    """Returns whether a .tsv file has quotation marks as a program writes them, and not as part of its texts.

    So it is where each cell but numbers stands in them (R), or where quoting what was read anew gives the file itself:
    each cell that needs it (pandas), or each with a comma too (Excel). What merely has marks in it is not quoted.
    """
    if '"' not in text:
        return False
    try:
        rows = list(csv.reader(_kept_ends(text), delimiter="\t", strict=True))
    except csv.Error:
        return False
    file = text.replace("\r\n", "\n").rstrip("\n")
    return _all_but_numbers_quoted(text) or any(file == _quoted(rows, marks) for marks in (_NEED_QUOTES, _EXCEL_QUOTES))


def _all_but_numbers_quoted(text: str) -> bool:
    try:
        for _ in csv.reader(_kept_ends(text), delimiter="\t", strict=True, quoting=csv.QUOTE_NONNUMERIC):
            pass
    except ValueError:  # a word without quotation marks
        return False
    return True


def _quoted(rows: list[list[str]], marks: str) -> str:
    """Returns rows as a .tsv file in which the cells with one of the `marks` are quoted."""
    lines = ("\t".join(_in_quotes(cell) if set(cell) & set(marks) else cell for cell in row) for row in rows)
    return "\n".join(lines).replace("\r\n", "\n").rstrip("\n")


def _in_quotes(cell: str) -> str:
    return '"' + cell.replace('"', '""') + '"'


def _kept_ends(text: str) -> list[str]:
    return [line + "\n" for line in text.split("\n")] if text else []


def read_json(text: str, path: Path, line: int = 1) -> Any:
    """Returns what a text of JSON says.

    Args:
        text: of one value.
        path: of the file it is from.
        line: in which it begins there.

    Raises:
        UserError: it is none, or holds what is no text: half of a surrogate pair.
    """
    try:
        value = json.loads(text)
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        where = f"{path}, line {line + error.lineno - 1}"
        raise UserError(f"{where}: not JSON ({error.msg}, column {error.colno})") from None
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise UserError(f"{path}, line {line}: {half} is half of a character, which is no text") from None
    except (RecursionError, ValueError) as error:
        raise UserError(f"{path}, line {line}: not JSON that can be read ({error})") from None
    return value


def _json_records(path: Path) -> Iterator[tuple[int, dict]]:
    for number, line in enumerate(split_lines(read_text(path)), start=1):
        if not line.strip():
            continue
        record = read_json(line, path, number)
        if not isinstance(record, dict):
            raise UserError(f"{path}, line {number}: allowed is one JSON object per line")
        yield number, record
