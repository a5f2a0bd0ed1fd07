"""FileTask: a user's own csv, tsv or jsonl files with named columns; one label, several, or a number."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Self

from keepfrac.errors import UserError
from keepfrac.settings import Kind, choice, flag, setting, settings
from keepfrac.settings import text as text_field
from keepfrac.tasks.base import LIST
from keepfrac.tasks.data.files import OwnFiles, Table, read_table, text_columns
from keepfrac.tasks.data.labels import check_classes, check_separator, found_labels, label_sets, to_label_rows, to_rows
from keepfrac.tasks.metrics.scores import NO_AND_YES, OF_ONE_CLASS, of_one_class
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
        positive: Any = setting(
            "the class that f1, precision, recall and acc_and_f1 are of; null: what names such as 0 and 1, or no and"
            " yes, say",
            Kind(lambda value: isinstance(value, str | int | float), "a word or a number"),
            null=True,
        )

        @classmethod
        def of(cls, given: Mapping[str, Any]) -> Self:
            return super().of({"positive": None, **given})  # runs of earlier versions do not name it

        def check(self) -> None:
            if self.positive is not None and not of_one_class(self.metrics or ()):
                raise self.error("positive", f"no effect without one of {', '.join(OF_ONE_CLASS)} in task.metrics")
            if self.multi_label and self.problem != "classification":
                raise self.error("problem", "allowed with task.multi_label=true is classification")
            if self.label_separator and not self.multi_label:
                raise self.error("label_separator", "must be null without task.multi_label=true")
            if self.labels is not None and self.problem == "regression":
                raise self.error("labels", "a regression has none; leave it null")
            if self.labels is not None and len(set(self.labels)) < max(2, len(self.labels)):
                raise self.error("labels", "allowed are two or more different labels")

    settings: Settings

    @property
    def limits(self) -> tuple[float, float] | None:
        """The least and the greatest number that a row may have; None: any."""
        return None

    def __init__(self, settings: Settings):
        self.problem = "multi_label" if settings.multi_label else settings.problem
        super().__init__(settings)

    def read(self) -> Splits:
        """Reads the files, and cuts from train what has no file."""
        own, files = self.settings, OwnFiles.needed(self.settings)
        columns = text_columns(own.text, own.text_pair, own.label)
        tables = {split: read_table(path, columns) for split, path in files.paths.items()}
        labels, rows = self._rows(tables)
        self._positive_of(labels)
        train, validation, test, how = completed(rows, files.names)
        return Splits(
            train=subset(train, own.rows),
            validation=validation,
            test=test,
            source=files.source,
            how=how,
            labels=labels,
            notes=_notes(tables, labels),
        )

    @property
    def positive(self) -> int:
        """The number of the class that F1, precision and recall are of."""
        return self._positive_of(self.labels)

    def _positive_of(self, labels: tuple[str, ...] | None) -> int:
        """Returns the number of the positive class: that of `task.positive`, or 1 where the names say so.

        Raises:
            UserError: it is no class, or nothing says which it is and a metric asks for it.
        """
        named, asking = self.settings.positive, of_one_class(self.metric_names)
        if labels is None or len(labels) != 2 or not asking:
            return 1
        if named is not None:
            if str(named) not in labels:
                raise self.settings.error("positive", f"the classes are {' and '.join(labels)}")
            return labels.index(str(named))
        if tuple(label.casefold() for label in labels) not in NO_AND_YES:
            ways = " or ".join(f"task.positive={label}" for label in labels)
            raise UserError(
                f"task.metrics: {asking[0]} is of one class: type {ways}, or take f1_macro, which is of both"
            )
        return 1

    def _rows(self, tables: dict[str, Table]) -> tuple[tuple[str, ...] | None, dict[str, Rows]]:
        """Returns the labels and the rows of each table."""
        given, train = self.settings.labels, tables["train"]
        labels = None if given is None else tuple(str(one).strip() for one in given)
        if self.problem == "multi_label":
            sets = {split: self._label_sets(table, labels or ()) for split, table in tables.items()}
            labels = labels or found_labels(train, sets["train"])
            return labels, {split: to_label_rows(table, labels, sets[split]) for split, table in tables.items()}
        if self.problem == "classification":
            for table in tables.values():
                check_classes(table, labels or ())
            labels = labels or (found_labels(train) if train.lines else None)
        return labels, {split: to_rows(table, labels, self.limits) for split, table in tables.items()}

    def _label_sets(self, table: Table, listed: Sequence[str]) -> list[list[str]]:
        separator = self.settings.label_separator
        sets = label_sets(table, separator)
        if separator is None:
            check_separator(table, listed, sets)
        check_classes(table, listed, sets)
        return sets


def _notes(tables: dict[str, Table], labels: Sequence[str] | None) -> dict:
    """Returns what a reader of the result has to know about how files and labels were read."""
    alike = Counter(label.casefold() for label in labels or ())
    several = [label for label in labels or () if alike[label.casefold()] > 1]
    by_file = {
        "labels_trimmed": {table.path.name: table.trimmed for table in tables.values() if table.trimmed},
        "texts_in_marks": {table.path.name: table.in_marks for table in tables.values() if table.in_marks},
    }
    return {key: value for key, value in {**by_file, "labels_alike": several}.items() if value}
