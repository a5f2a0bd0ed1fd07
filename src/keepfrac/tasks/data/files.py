"""A user's own tables: csv, tsv and jsonl files with named columns; errors name the file and the line."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from keepfrac.errors import DataMissing, UserError
from keepfrac.tasks.rows import Rows

SUFFIXES = (".csv", ".tsv", ".jsonl")
MOST_LABELS = 1_000


@dataclass(frozen=True)
class Table:
    """Texts of a file by column, before labels are numbers.

    Args:
        path: of the file.
        columns: what a column is for ("text", "text_pair", "label") -> its values, strings.
        lines: where each row ends in the file, from 1.
    """

    path: Path
    columns: dict[str, list[str]]
    lines: list[int]

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
        path: a .csv (quoted, commas), .tsv (tabs, no quoting) or .jsonl file, UTF-8.
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
    return Table(path, values, lines)


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
    if path.suffix == ".tsv":
        reader = csv.DictReader(split_lines(text), delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        reader = csv.DictReader(_kept_ends(text), strict=True)
    try:
        for record in reader:
            if None in record:
                raise UserError(f"{path}, line {reader.line_num}: more values than the {len(record) - 1} columns")
            yield reader.line_num, record
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}") from error


def _kept_ends(text: str) -> list[str]:
    return [line + "\n" for line in text.split("\n")] if text else []


def _json_records(path: Path) -> Iterator[tuple[int, dict]]:
    for number, line in enumerate(split_lines(read_text(path)), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number}: not JSON ({error.msg}, column {error.colno})") from None
        if not isinstance(record, dict):
            raise UserError(f"{path}, line {number}: allowed is one JSON object per line")
        yield number, record


def label_sets(table: Table, separator: str | None) -> list[list[str]]:
    """Returns the labels of each row: what stands between separators (None: white space); nothing: no label."""
    split = [text.split(separator) if text.strip() else [] for text in table.columns["label"]]
    return [[label.strip() for label in row] for row in split]


def found_labels(table: Table, sets: Sequence[Sequence[str]] | None = None) -> tuple[str, ...]:
    """Returns the labels of a table, sorted: as numbers where all are whole numbers.

    Args:
        table: what was read.
        sets: the labels of each row, where it has several.
    """
    labels = set(table.columns["label"]) if sets is None else set().union(*sets)
    if not 2 <= len(labels) <= MOST_LABELS:
        raise UserError(
            f"{table.path}: the label column holds {len(labels)} different labels; allowed are 2 to {MOST_LABELS}"
            " (for numbers to be predicted: task.problem=regression)"
        )
    try:
        return tuple(sorted(labels, key=int))
    except ValueError:
        return tuple(sorted(labels))


def to_rows(table: Table, labels: Sequence[str] | None, limits: tuple[float, float] | None = None) -> Rows:
    """Returns rows with class numbers, or with scores where `labels` is None.

    Args:
        table: what was read.
        labels: the labels as they stand in the file, in the order of their numbers; None: a regression.
        limits: least and greatest score that is allowed; None: any number.
    """
    convert = _scores(table, limits) if labels is None else _classes(table, labels)
    return Rows({**{name: values for name, values in table.columns.items() if name != "label"}, "label": convert})


def to_label_rows(table: Table, labels: Sequence[str], sets: Sequence[Sequence[str]]) -> Rows:
    """Returns rows whose label is the sorted list of their class numbers, empty where they have none.

    Raises:
        UserError: a label that is empty, or none of `labels`, or that stands twice in a row.
    """
    number = {label: i for i, label in enumerate(labels)}
    classes = []
    for row, found in enumerate(sets):
        for label in found:
            if not label:
                raise table.error(row, f"nothing between two separators of {table.columns['label'][row]!r}")
            if label not in number:
                raise table.error(row, f"label {label!r}; allowed are {', '.join(labels)}")
            if found.count(label) > 1:
                raise table.error(row, f"label {label!r} stands there twice")
        classes.append(sorted(number[label] for label in found))
    return Rows({**{name: texts for name, texts in table.columns.items() if name != "label"}, "label": classes})


def _classes(table: Table, labels: Sequence[str]) -> list[int]:
    number = {label: i for i, label in enumerate(labels)}
    classes = []
    for row, label in enumerate(table.columns["label"]):
        if label not in number:
            raise table.error(row, f"label {label!r}; allowed are {', '.join(labels)}")
        classes.append(number[label])
    return classes


def _scores(table: Table, limits: tuple[float, float] | None) -> list[float]:
    low, high = limits or (float("-inf"), float("inf"))
    values = []
    for row, text in enumerate(table.columns["label"]):
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not (low <= value <= high and abs(value) < float("inf")):
            wanted = "a finite number" if limits is None else f"a number from {low:g} to {high:g}"
            raise table.error(row, f"score {text!r}; allowed is {wanted}")
        values.append(value)
    return values
