"""FileTask: a user's own csv, tsv or jsonl files with named columns; one label, several, or a number."""

from collections.abc import Sequence
from pathlib import Path

from keepfrac.errors import UserError
from keepfrac.settings import choice, flag, setting, settings
from keepfrac.settings import text as text_field
from keepfrac.tasks.base import LIST
from keepfrac.tasks.data.files import Table, found_labels, label_sets, read_table, text_columns, to_label_rows, to_rows
from keepfrac.tasks.rows import Rows, Splits, completed, subset
from keepfrac.tasks.text import TextTask


class FileTask(TextTask):
    """One text per row, or two, and a class, several labels or a number."""

    @settings
    class Settings(TextTask.Settings):
        """The files and their columns."""

        problem: str = choice("what is predicted", "classification", "regression")
        train_file: str | None = text_field("the training rows (.csv, .tsv or .jsonl)", null=True)
        validation_file: str | None = text_field(
            "rows that choose the best checkpoint; null: cut from train", null=True
        )
        test_file: str | None = text_field("rows that are reported; null: cut from train", null=True)
        text: str = text_field("column of the text")
        text_pair: str | None = text_field("column of the second text; null: one text", null=True)
        label: str = text_field("column of the class, the labels or the number")
        multi_label: bool = flag("a row has any number of labels, none included")
        label_separator: str | None = text_field(
            "with multi_label, what stands between labels; null: white space", null=True
        )
        labels: Sequence | None = setting(
            "the classes as they stand in the files, in the order of their numbers; null: those of train, sorted",
            LIST,
            null=True,
        )

        def check(self) -> None:
            if self.multi_label and self.problem != "classification":
                raise self.error("problem", "allowed with task.multi_label=true is classification")
            if self.label_separator and not self.multi_label:
                raise self.error("label_separator", "must be null without task.multi_label=true")
            if self.labels is not None and self.problem == "regression":
                raise self.error("labels", "a regression has none; leave it null")
            if self.labels is not None and len(set(self.labels)) < max(2, len(self.labels)):
                raise self.error("labels", "allowed are two or more different labels")

    settings: Settings

    def __init__(self, settings: Settings):
        self.problem = "multi_label" if settings.multi_label else settings.problem
        super().__init__(settings)

    def read(self) -> Splits:
        """Reads the files, and cuts from train what has no file."""
        own = self.settings
        if not own.train_file:
            raise UserError(f"task {self.name}: type task.train_file=<your .csv, .tsv or .jsonl file>")
        files = {"train": own.train_file, "validation": own.validation_file, "test": own.test_file}
        paths = {split: Path(file).expanduser() for split, file in files.items() if file}
        columns = text_columns(own.text, own.text_pair, own.label)
        tables = {split: read_table(path, columns) for split, path in paths.items()}
        labels, rows = self._rows(tables)
        train, validation, test, how = completed(rows)
        source = "files " + ", ".join(str(path) for path in paths.values())
        return Splits(
            train=subset(train, own.rows), validation=validation, test=test, source=source, how=how, labels=labels
        )

    def _rows(self, tables: dict[str, Table]) -> tuple[tuple[str, ...] | None, dict[str, Rows]]:
        """Returns the labels and the rows of each table."""
        given, train = self.settings.labels, tables["train"]
        labels = None if given is None else tuple(str(one) for one in given)
        if self.problem == "multi_label":
            sets = {split: label_sets(table, self.settings.label_separator) for split, table in tables.items()}
            labels = labels or found_labels(train, sets["train"])
            return labels, {split: to_label_rows(table, labels, sets[split]) for split, table in tables.items()}
        if self.problem == "classification" and labels is None and train.lines:
            labels = found_labels(train)
        return labels, {split: to_rows(table, labels) for split, table in tables.items()}
