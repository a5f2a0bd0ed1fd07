"""FileTask: a user's own csv, tsv or jsonl files with named columns; classification or regression."""

from collections.abc import Sequence
from pathlib import Path

from src.errors import UserError
from src.tasks.files import found_labels, read_table, to_rows
from src.tasks.rows import Rows, Splits, cut_three, cut_validation, subset
from src.tasks.text import TextTask


class FileTask(TextTask):
    """One text per row, or two, and a class or a number.

    Args:
        name: the task's name in results.
        problem: "classification" or "regression".
        train_file: the training rows (.csv, .tsv or .jsonl).
        validation_file: rows that choose the best checkpoint; None: cut from train.
        test_file: rows that are reported; None: cut from train.
        text: column of the text.
        text_pair: column of the second text; None: one text.
        label: column of the class or the number.
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
        super().__init__(
            name=name,
            problem=problem,
            rows=rows,
            max_length=max_length,
            metrics=metrics,
            best_metric=best_metric,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            seed=seed,
            num_workers=num_workers,
        )
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
        labels = self.given_labels
        if self.problem == "classification" and labels is None and tables["train"].lines:
            labels = found_labels(tables["train"])
        rows = {split: to_rows(table, labels) for split, table in tables.items()}
        train, validation, test, how = _complete(rows)
        source = "files " + ", ".join(str(path) for path in paths.values())
        return Splits(subset(train, self.rows), validation, test, source, how, labels)


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
