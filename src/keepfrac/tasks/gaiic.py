"""GaiicTask: the reports of GAIIC-2021, track 1, first round: anonymised words and any number of 17 labels.

A line is `id|,|words|,|labels`; words and labels are numbers with white space between, and a report may have no label.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from keepfrac.errors import DataMissing, UserError
from keepfrac.settings import count, settings, text
from keepfrac.tasks.data.files import read_text, split_lines
from keepfrac.tasks.rows import Rows, Splits, cut_validation, hash_buckets, refuse_copies, subset
from keepfrac.tasks.text import TextTask

SEPARATOR = "|,|"
LABELS = tuple(str(number) for number in range(17))
FILES = {"train": "train.csv", "test": "test.csv"}


def read_reports(path: Path) -> Rows:
    """Reads a file of reports.

    Raises:
        UserError: a line that is not a report; the message says which and why, and how many more there are.
    """
    texts, labels, faults = [], [], []
    seen: set[str] = set()
    for number, line in enumerate(split_lines(read_text(path)), start=1):
        try:
            identifier, text, found = _report(line)
            if identifier in seen:
                raise ValueError(f"the id {identifier} stands in an earlier line too")
        except ValueError as error:
            faults.append(f"line {number}: {error}")
            continue
        seen.add(identifier)
        texts.append(text)
        labels.append(found)
    if faults:
        others = f"; and {len(faults) - 1} more such lines" if len(faults) > 1 else ""
        raise UserError(f"{path}, {faults[0]}{others}")
    return Rows({"text": texts, "label": labels})


def _report(line: str) -> tuple[str, str, list[int]]:
    """Returns id, words and label numbers of a line.

    Raises:
        ValueError: says what is wrong with it.
    """
    parts = line.split(SEPARATOR)
    if len(parts) != 3:
        raise ValueError(f"{len(parts)} parts between {SEPARATOR!r}; allowed are three: id, words, labels")
    identifier, words, named = (part.split() for part in parts)
    if len(identifier) != 1:
        raise ValueError(f"the id {parts[0]!r}; allowed is one word")
    if not words:
        raise ValueError("no words")
    wrong = [label for label in named if label not in LABELS]
    if wrong:
        raise ValueError(f"label {wrong[0]!r}; allowed are 0 to {len(LABELS) - 1}")
    if len({*named}) < len(named):
        raise ValueError(f"a label stands twice in {parts[2].strip()!r}")
    return identifier[0], " ".join(words), sorted(int(label) for label in named)


def fold_of(texts: Sequence[str], folds: int) -> np.ndarray:
    """Returns the fold of each text, (rows,), by another hash than the one that cuts validation: no seed counts."""
    return (hash_buckets([f"fold {text}" for text in texts]) * folds).astype(int)


class GaiicTask(TextTask):
    """Which of 17 labels does a report have?

    The given test rows are the test set, unless there are folds: then a fold of the training rows is, and the given
    test is not read at all.
    """

    @settings
    class Settings(TextTask.Settings):
        """The folder, and how its rows are divided."""

        data_dir: str | None = text("the folder with train.csv and test.csv; null: that of GAIIC_DATA", null=True)
        folds: int | None = count("into how many parts the training rows are divided; null: they are not", 2, True)
        fold: int | None = count("with folds, the part that is the test set, from 0", 0, null=True)

        def check(self) -> None:
            if self.folds is None and self.fold is not None:
                raise self.error("fold", "must be null without task.folds")
            if self.folds is not None and (self.fold is None or self.fold >= self.folds):
                raise self.error("fold", f"allowed are 0 to {self.folds - 1}")

    settings: Settings
    problem = "multi_label"

    def read(self) -> Splits:
        """Reads train, and test where there are no folds; cuts validation from train."""
        folder, folds, fold = self._folder(), self.settings.folds, self.settings.fold
        given = read_reports(folder / FILES["train"])
        if folds:
            held_out = fold_of(given["text"], folds) == fold
            given, test = given.take(np.flatnonzero(~held_out)), given.take(np.flatnonzero(held_out))
            how = f"test is fold {fold} of {folds} of train by a hash of the text, the given test is not read"
        else:
            test, how = read_reports(folder / FILES["test"]), "test as given"
            refuse_copies({"train": given, "test": test}, {split: str(folder / file) for split, file in FILES.items()})
        train, validation = cut_validation(given)
        how += "; validation is 10 % of the other training rows by a hash of the text"
        return Splits(
            train=subset(train, self.settings.rows),
            validation=validation,
            test=test,
            source=f"folder {folder}",
            how=how,
            labels=LABELS,
        )

    def _folder(self) -> Path:
        root = self.settings.data_dir or os.environ.get("GAIIC_DATA")
        if not root:
            raise DataMissing(
                f"task {self.name}: the reports are not to be had freely; type task.data_dir=<your folder that holds"
                " train.csv and test.csv>, or set the environment variable GAIIC_DATA to it"
            )
        return Path(root).expanduser()
