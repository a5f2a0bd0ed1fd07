"""GaiicTask: the reports of GAIIC-2021, track 1, first round: anonymised words and any number of 17 labels.

A line is `id|,|words|,|labels`; words and labels are numbers with white space between, and a report may have no label.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from keepfrac.errors import DataMissing, UserError
from keepfrac.tasks.data.files import read_text, split_lines
from keepfrac.tasks.rows import Rows, Splits, cut_validation, places, subset
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
    return (places([f"fold {text}" for text in texts]) * folds).astype(int)


class GaiicTask(TextTask):
    """Which of 17 labels does a report have?

    The given test rows are the test set, unless there are folds: then a fold of the training rows is, and the given
    test is not read at all.

    Args:
        name: the task's name in results.
        data_dir: the folder with train.csv and test.csv; None: the one that the environment variable GAIIC_DATA names.
        folds: into how many parts the training rows are divided, >= 2; None: they are not.
        fold: with folds, the part that is the test set, from 0.
        rows: how many training rows to take; None: all.
        max_length: most tokens of a row, special tokens included.
        metrics: names of the metrics; None: all of `multi_label`.
        best_metric: the metric, or "loss", that chooses the best checkpoint; None: the first metric.
        batch_size: rows of one process in a training batch.
        eval_batch_size: most rows of one process in an evaluation batch.
        seed: of the order of training batches.
        num_workers: processes that prepare batches.
    """

    def __init__(
        self,
        *,
        name: str,
        data_dir: str | None,
        folds: int | None,
        fold: int | None,
        rows: int | None,
        max_length: int,
        metrics: Sequence[str] | None,
        best_metric: str | None,
        batch_size: int,
        eval_batch_size: int,
        seed: int,
        num_workers: int,
    ):
        if folds is not None and folds < 2:
            raise UserError(f"task.folds={folds}: allowed are whole numbers from 2, and null")
        if (fold is None) != (folds is None) or (folds is not None and fold not in range(folds)):
            allowed = f"0 to {folds - 1}" if folds else "null, and with task.folds the number of one of them"
            raise UserError(f"task.fold={fold}: allowed are {allowed}")
        super().__init__(
            name=name,
            problem="multi_label",
            rows=rows,
            max_length=max_length,
            metrics=metrics,
            best_metric=best_metric,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            seed=seed,
            num_workers=num_workers,
        )
        self.data_dir, self.folds, self.fold = data_dir, folds, fold

    def read(self) -> Splits:
        """Reads train, and test where there are no folds; cuts validation from train."""
        folder = self._folder()
        given = read_reports(folder / FILES["train"])
        if self.folds:
            held_out = fold_of(given["text"], self.folds) == self.fold
            given, test = given.take(np.flatnonzero(~held_out)), given.take(np.flatnonzero(held_out))
            how = f"test is fold {self.fold} of {self.folds} of train by a hash of the text, the given test is not read"
        else:
            test, how = read_reports(folder / FILES["test"]), "test as given"
        train, validation = cut_validation(given)
        how += "; validation is 10 % of the other training rows by a hash of the text"
        return Splits(subset(train, self.rows), validation, test, f"folder {folder}", how, LABELS)

    def _folder(self) -> Path:
        root = self.data_dir or os.environ.get("GAIIC_DATA")
        if not root:
            raise DataMissing(
                f"task {self.name}: the reports are not to be had freely; type task.data_dir=<your folder that holds"
                " train.csv and test.csv>, or set the environment variable GAIIC_DATA to it"
            )
        return Path(root).expanduser()
