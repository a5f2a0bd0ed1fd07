"""FileTask: a user's own csv, tsv or jsonl files with named columns; one label, several, or a number."""

from collections.abc import Sequence
from pathlib import Path

from keepfrac.errors import UserError
from keepfrac.tasks.data.files import Table, found_labels, label_sets, read_table, to_label_rows, to_rows
from keepfrac.tasks.rows import Rows, Splits, cut_three, cut_validation, subset
from keepfrac.tasks.text import TextTask

PROBLEMS = ("classification", "regression")


class FileTask(TextTask):
    """One text per row, or two, and a class, several labels or a number.

    Args:
        name: the task's name in results.
        problem: "classification" or "regression".
        train_file: the training rows (.csv, .tsv or .jsonl).
        validation_file: rows that choose the best checkpoint; None: cut from train.
        test_file: rows that are reported; None: cut from train.
        text: column of the text.
        text_pair: column of the second text; None: one text.
        label: column of the class, the labels or the number.
        multi_label: true: a row has any number of labels, none included.
        label_separator: with multi_label, what stands between labels; None: white space.
        labels: the classes as they stand in the files, in the order of their numbers; None: those of train, sorted.
        rows: how many training rows to take; None: all.
        max_length: most tokens of a row, special tokens included.
        metrics: names of the metrics; None: those that fit the problem.
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
        problem: str,
        train_file: str | None,
        validation_file: str | None,
        test_file: str | None,
        text: str,
        text_pair: str | None,
        label: str,
        multi_label: bool,
        label_separator: str | None,
        labels: Sequence | None,
        rows: int | None,
        max_length: int,
        metrics: Sequence[str] | None,
        best_metric: str | None,
        batch_size: int,
        eval_batch_size: int,
        seed: int,
        num_workers: int,
    ):
        if problem not in PROBLEMS or (multi_label and problem != "classification"):
            kinds = "classification" if multi_label else " and ".join(PROBLEMS)
            raise UserError(f"task.problem={problem}: allowed are {kinds}" + " of several labels" * multi_label)
        if label_separator == "" or (label_separator and not multi_label):
            raise UserError(
                f"task.label_separator={label_separator!r}: allowed are null, and with task.multi_label=true some text"
            )
        super().__init__(
            name=name,
            problem="multi_label" if multi_label else problem,
            rows=rows,
            max_length=max_length,
            metrics=metrics,
            best_metric=best_metric,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            seed=seed,
            num_workers=num_workers,
        )
        self.separator = label_separator
        if labels is not None and problem == "regression":
            raise UserError(f"task.labels={list(labels)}: a regression has none; leave it null")
        if labels is not None and len(set(labels)) < max(2, len(labels)):
            raise UserError(f"task.labels={list(labels)}: allowed are two or more different labels")
        self.files = {"train": train_file, "validation": validation_file, "test": test_file}
        named = {"text": text, "text_pair": text_pair, "label": label}
        self.columns = {purpose: column for purpose, column in named.items() if column is not None}
        self.given_labels = None if labels is None else tuple(str(one) for one in labels)

    def read(self) -> Splits:
        """Reads the files, and cuts from train what has no file."""
        if not self.files["train"]:
            raise UserError(f"task {self.name}: type task.train_file=<your .csv, .tsv or .jsonl file>")
        paths = {split: Path(str(file)).expanduser() for split, file in self.files.items() if file}
        tables = {split: read_table(path, self.columns) for split, path in paths.items()}
        labels, rows = self._rows(tables)
        train, validation, test, how = _complete(rows)
        source = "files " + ", ".join(str(path) for path in paths.values())
        return Splits(subset(train, self.rows), validation, test, source, how, labels)

    def _rows(self, tables: dict[str, Table]) -> tuple[tuple[str, ...] | None, dict[str, Rows]]:
        """Returns the labels and the rows of each table."""
        labels, train = self.given_labels, tables["train"]
        if self.problem == "multi_label":
            sets = {split: label_sets(table, self.separator) for split, table in tables.items()}
            labels = labels or found_labels(train, sets["train"])
            return labels, {split: to_label_rows(table, labels, sets[split]) for split, table in tables.items()}
        if self.problem == "classification" and labels is None and train.lines:
            labels = found_labels(train)
        return labels, {split: to_rows(table, labels) for split, table in tables.items()}


def _complete(rows: dict[str, Rows]) -> tuple[Rows, Rows, Rows, str]:
    """Returns train, validation, test, and how the missing ones were made."""
    train, validation, test = rows["train"], rows.get("validation"), rows.get("test")
    share = "10 % of train (5,000 rows at most) by a hash of the text"
    if validation is None and test is None:
        how = "validation and test are 10 % of train each, by a hash of the text"
        return *cut_three(train), how
    if validation is None:
        train, validation = cut_validation(train)
        return train, validation, rows["test"], f"test has its own file; validation is {share}"
    if test is None:
        train, test = cut_validation(train)
        return train, validation, test, f"validation has its own file; test is {share}"
    return train, validation, test, "each has its own file"
