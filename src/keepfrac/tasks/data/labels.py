"""The labels of a table, from text to class numbers or scores: what is no label is refused, with its lines.

A label is a value: blanks around it do not count, a missing one is none, and one number is one label however it is
written. What a user lists in `task.labels` is taken as it is listed.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence

from keepfrac.errors import UserError
from keepfrac.tasks.data.files import Table
from keepfrac.tasks.rows import Rows

MOST_LABELS = 1_000
# how pandas and R write a missing value, and what pandas reads as one
MISSING = frozenset(
    {"", "#N/A", "#NA", "-NaN", "-nan", "<NA>", "N/A", "NA", "NULL", "NaN", "NaT", "None", "n/a", "nan", "null"}
)
SEPARATORS = ",;|"
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_MOST_LINES, _MOST_SHOWN = 5, 30  # in a message
_FEW_CLASSES, _FEW_ROWS = 20, 3  # more classes than this, of fewer rows each, are no classes


def number_of(label: str) -> float | None:
    """Returns the number that a label writes; None: it is a word."""
    return float(label) if _NUMBER.fullmatch(label) else None


def label_sets(table: Table, separator: str | None) -> list[list[str]]:
    """Returns the labels of each row: what stands between separators (None: white space); nothing: no label."""
    split = [text.split(separator) if text.strip() else [] for text in table.columns["label"]]
    return [[label.strip() for label in row] for row in split]


def check_classes(table: Table, listed: Collection[str], sets: Sequence[Sequence[str]] | None = None) -> None:
    """Refuses what cannot be the classes of a table.

    Args:
        table: what was read.
        listed: labels that the user has listed, which are taken as they are.
        sets: the labels of each row, where it has several.

    Raises:
        UserError: labels that are missing, or one number written in two ways.
    """
    rows: dict[str, list[int]] = defaultdict(list)
    for row, found in enumerate([[label] for label in table.columns["label"]] if sets is None else sets):
        for label in set(found).difference(listed):
            rows[label].append(row)
    # between separators an empty label is another mistake
    missing = MISSING if sets is None else MISSING - {""}
    _refuse_missing(table, sorted(row for label in missing & rows.keys() for row in rows[label]))
    _refuse_two_spellings(table, rows)


def _refuse_missing(table: Table, rows: Sequence[int]) -> None:
    if rows:
        found = ", ".join(map(repr, dict.fromkeys(table.columns["label"][row] for row in rows)))
        raise UserError(
            f"{table.path}: {len(rows)} of {len(table.lines)} rows have no label ({_lines(table, rows)}: {found});"
            " leave them out, or list a class of that name in task.labels"
        )


def _refuse_two_spellings(table: Table, rows: Mapping[str, list[int]]) -> None:
    spellings = defaultdict(list)
    for label in rows:
        if (number := number_of(label)) is not None:
            spellings[number].append(label)
    for several in spellings.values():
        if len(several) > 1:
            where = "; ".join(f"{label!r}: {len(rows[label])} rows, {_lines(table, rows[label])}" for label in several)
            raise UserError(
                f"{table.path}: one number is written in {len(several)} ways among the labels ({where}); write it in"
                " one way, or list the classes in task.labels"
            )


def _lines(table: Table, rows: Sequence[int]) -> str:
    shown = ", ".join(str(table.lines[row]) for row in rows[:_MOST_LINES])
    return f"line{'s' * (len(rows) > 1)} {shown}" + ", ..." * (len(rows) > _MOST_LINES)


def check_separator(table: Table, listed: Collection[str], sets: Sequence[Sequence[str]]) -> None:
    """Refuses labels that seem to be several, where nothing says what separates them.

    Args:
        table: what was read.
        listed: labels that the user has listed, which are taken as they are.
        sets: the labels of each row, between white space.

    Raises:
        UserError: names the line and the separator.
    """
    for row, found in enumerate(sets):
        for label in found:
            marks = [mark for mark in SEPARATORS if mark in label]
            if marks and label not in listed:
                raise table.error(
                    row,
                    f"{table.columns['label'][row]!r} seems to hold several labels: type"
                    f" \"task.label_separator='{marks[0]}'\", or list the classes in task.labels",
                )


def found_labels(table: Table, sets: Sequence[Sequence[str]] | None = None) -> tuple[str, ...]:
    """Returns the labels of a table, sorted: as numbers where all are whole numbers.

    Args:
        table: what was read.
        sets: the labels of each row, where it has several.

    Raises:
        UserError: too few or too many of them, or numbers that are no classes.
    """
    labels = set(table.columns["label"]) if sets is None else set().union(*sets)
    if not 2 <= len(labels) <= MOST_LABELS:
        raise UserError(
            f"{table.path}: the label column holds {len(labels)} different labels; allowed are 2 to {MOST_LABELS}"
            " (for numbers to be predicted: task.problem=regression)"
        )
    if sets is None:
        _refuse_scores(table)
    try:
        return tuple(sorted(labels, key=int))
    except ValueError:
        return tuple(sorted(labels))


def _refuse_scores(table: Table) -> None:
    """Refuses numbers that are no classes: fractions, as scikit-learn has it, or nearly one for each row."""
    counts = Counter(table.columns["label"])
    numbers = [number_of(label) for label in counts]
    if None in numbers:
        return
    fractions = [label for label in counts if not float(label).is_integer()]
    if fractions or len(counts) > max(_FEW_CLASSES, len(table.lines) / _FEW_ROWS):
        example = (fractions or list(counts))[0]
        raise UserError(
            f"{table.path}: the labels are {len(counts)} different numbers in {len(table.lines)} rows, such as"
            f" {example}: to predict a number type task.problem=regression, for classes list them in task.labels"
        )


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
                raise table.error(row, f"label {label!r}; allowed are {_allowed(labels)}")
            if found.count(label) > 1:
                raise table.error(row, f"label {label!r} stands there twice")
        classes.append(sorted(number[label] for label in found))
    return Rows({**{name: texts for name, texts in table.columns.items() if name != "label"}, "label": classes})


def _allowed(labels: Sequence[str]) -> str:
    return ", ".join(labels[:_MOST_SHOWN]) + f", ... ({len(labels)})" * (len(labels) > _MOST_SHOWN)


def _classes(table: Table, labels: Sequence[str]) -> list[int]:
    number = {label: i for i, label in enumerate(labels)}
    classes = []
    for row, label in enumerate(table.columns["label"]):
        if label not in number:
            raise table.error(row, f"label {label!r}; allowed are {_allowed(labels)}")
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
