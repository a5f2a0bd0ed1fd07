"""The classic `glue_data/` folder: where each task's rows stand, and what is odd about its files.

All are tab-separated UTF-8 without quoting; bare quotation marks, "null" and "NA" are text. Beyond that: CoLA has no
header; MRPC begins with a byte order mark; QQP has broken rows; MNLI has 12 or 16 columns and its label in the last; so
has STS-B its score.
"""

from dataclasses import dataclass
from pathlib import Path

from keepfrac.errors import DataMissing, UserError
from keepfrac.tasks.data.files import Table, read_text, split_lines

LAST = ""
"""Stands for the last column, whatever its name."""


@dataclass(frozen=True, kw_only=True)
class GlueLayout:
    """One task in the folder and on the hub.

    Args:
        folder: its folder inside `glue_data/`.
        columns: what a column is for -> its name in the header.
        hub_columns: the same on the hub.
        raw: labels as they stand in the files, in the order of their numbers; None: a regression.
        labels: names of the classes.
        header: column names of a file that has no header line.
        tests: name of a test set -> (its file, its split on the hub).
        limits: least and greatest score of a regression.
        unlabelled: labels of rows that are left out.
        short_rows: True: rows with missing columns are left out, not an error.
    """

    folder: str
    columns: dict[str, str]
    hub_columns: dict[str, str]
    raw: tuple[str, ...] | None
    labels: tuple[str, ...] | None
    header: tuple[str, ...] | None = None
    tests: dict[str, tuple[str, str]]
    limits: tuple[float, float] | None = None
    unlabelled: frozenset[str] = frozenset()
    short_rows: bool = False


def _pair(first: str, second: str, label: str = "label") -> dict[str, str]:
    return {"text": first, "text_pair": second, "label": label}


_DEV = {"dev": ("dev.tsv", "validation")}
_BITS = ("0", "1")
_ENTAILS = ("entailment", "not_entailment")
_NLI = ("entailment", "neutral", "contradiction")
_ONE = {"text": "sentence", "label": "label"}

LAYOUTS = {
    "cola": GlueLayout(
        folder="CoLA",
        columns=_ONE,
        hub_columns=_ONE,
        raw=_BITS,
        labels=("unacceptable", "acceptable"),
        header=("source", "label", "mark", "sentence"),
        tests=_DEV,
    ),
    "sst2": GlueLayout(
        folder="SST-2", columns=_ONE, hub_columns=_ONE, raw=_BITS, labels=("negative", "positive"), tests=_DEV
    ),
    "mrpc": GlueLayout(
        folder="MRPC",
        columns=_pair("#1 String", "#2 String", "Quality"),
        hub_columns=_pair("sentence1", "sentence2"),
        raw=_BITS,
        labels=("not_equivalent", "equivalent"),
        tests={**_DEV, "official": ("msr_paraphrase_test.txt", "test")},
    ),
    "stsb": GlueLayout(
        folder="STS-B",
        columns=_pair("sentence1", "sentence2", LAST),
        hub_columns=_pair("sentence1", "sentence2"),
        raw=None,
        labels=None,
        tests=_DEV,
        limits=(0.0, 5.0),
    ),
    "qqp": GlueLayout(
        folder="QQP",
        columns=_pair("question1", "question2", "is_duplicate"),
        hub_columns=_pair("question1", "question2"),
        raw=_BITS,
        labels=("not_duplicate", "duplicate"),
        tests=_DEV,
        short_rows=True,
    ),
    "mnli": GlueLayout(
        folder="MNLI",
        columns=_pair("sentence1", "sentence2", LAST),
        hub_columns=_pair("premise", "hypothesis"),
        raw=_NLI,
        labels=_NLI,
        tests={
            "dev": ("dev_matched.tsv", "validation_matched"),
            "mismatched": ("dev_mismatched.tsv", "validation_mismatched"),
        },
        unlabelled=frozenset({"-"}),
    ),
    "qnli": GlueLayout(
        folder="QNLI",
        columns=_pair("question", "sentence"),
        hub_columns=_pair("question", "sentence"),
        raw=_ENTAILS,
        labels=_ENTAILS,
        tests=_DEV,
    ),
    "rte": GlueLayout(
        folder="RTE",
        columns=_pair("sentence1", "sentence2"),
        hub_columns=_pair("sentence1", "sentence2"),
        raw=_ENTAILS,
        labels=_ENTAILS,
        tests=_DEV,
    ),
    "wnli": GlueLayout(
        folder="WNLI",
        columns=_pair("sentence1", "sentence2"),
        hub_columns=_pair("sentence1", "sentence2"),
        raw=_BITS,
        labels=("not_entailment", "entailment"),
        tests=_DEV,
    ),
}


def read_glue(path: Path, layout: GlueLayout) -> tuple[Table, int]:
    """Returns the rows of one file, and how many were left out as broken or unlabelled."""
    if not path.is_file():
        raise DataMissing(f"{path}: no such file; {_neighbours(path)} (task.folder= takes another name)")
    lines = split_lines(read_text(path))
    header = list(layout.header) if layout.header else (lines[0].split("\t") if lines else [])
    where = {purpose: _column(path, header, name) for purpose, name in layout.columns.items()}
    table = Table(path, {purpose: [] for purpose in where}, [])
    left_out = 0
    for number, line in enumerate(lines[0 if layout.header else 1 :], start=1 if layout.header else 2):
        values = line.split("\t")
        if len(values) < len(header) and line and not layout.short_rows:
            raise UserError(f"{path}, line {number}: {len(values)} columns; allowed are {len(header)}")
        if len(values) < len(header) or values[where["label"]] in layout.unlabelled:
            left_out += bool(line)
            continue
        for purpose, column in where.items():
            table.columns[purpose].append(values[column])
        table.lines.append(number)
    return table, left_out


def _column(path: Path, header: list[str], name: str) -> int:
    """Returns the position of a column; -1: the last."""
    if name == LAST:
        return -1
    if name not in header:
        raise UserError(f"{path}, line 1: no column {name!r}; there are {', '.join(header) or 'none'}")
    return header.index(name)


def _neighbours(path: Path) -> str:
    """Says what there is instead of a missing file."""
    for folder in path.parents[:2]:
        if folder.is_dir():
            names = sorted(entry.name for entry in folder.iterdir())
            return f"{folder} holds {', '.join(names[:20]) or 'nothing'}"
    return f"{path.parents[1]} is no folder"
