"""GlueTask: the tasks of GLUE, from the hub or from a user's own folder in the classic layout.

GLUE hides the labels of its test sets, so its dev set is the test set here, and validation is cut from train by a hash
of the first text: rows that share it stay together. The metrics are the official ones.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from keepfrac.errors import DataMissing
from keepfrac.settings import choice, setting, settings, text
from keepfrac.tasks.base import LIST
from keepfrac.tasks.data.glue import LAYOUTS, read_glue
from keepfrac.tasks.data.hub_data import hub_dataset, hub_rows
from keepfrac.tasks.data.labels import to_rows
from keepfrac.tasks.rows import Rows, Splits, cut_validation, subset
from keepfrac.tasks.text import TextTask

HUB = "nyu-mll/glue"
CUT = "validation is 10 % of train (5,000 rows at most) by a hash of the first text"
TEST = {
    "dev": "test is GLUE's dev set (GLUE hides the labels of its test set)",
    "official": "test is the labelled test set of the corpus",
    "mismatched": "test is GLUE's mismatched dev set",
}


class GlueTask(TextTask):
    """One task of GLUE."""

    @settings
    class Settings(TextTask.Settings):
        """The task, and where its rows are read."""

        name: str = choice("the task", *LAYOUTS)
        data_dir: str | None = text(
            "the folder that holds the task's folder (such as MRPC/), read instead of the hub; null: the hub, and"
            " where it does not answer the folder named by the environment variable GLUE_DATA",
            null=True,
        )
        folder: str | None = text("name of the task's folder, where it is not the classic one", null=True)
        test: str = choice("which labelled rows are the test set", *TEST)
        overlaps: Sequence[str] = setting(
            "tasks that share rows with this one: no model may be evaluated on both", LIST
        )

        @property
        def layout_name(self) -> str:
            """The GLUE task whose rows are read."""
            return self.name

        def check(self) -> None:
            allowed = LAYOUTS[self.layout_name].tests
            if self.test not in allowed:
                raise self.error("test", f"allowed for {self.layout_name} are {', '.join(allowed)}")

    settings: Settings

    def __init__(self, settings: Settings):
        self.layout = LAYOUTS[settings.layout_name]
        self.problem = self.problem_of()
        self.overlaps = tuple(settings.overlaps)
        super().__init__(settings)

    def problem_of(self) -> str:
        """Returns what is predicted."""
        return "regression" if self.layout.raw is None else "classification"

    def read(self) -> Splits:
        """Reads the first source there is, and cuts validation from train."""
        named, source, notes = self._from_hub() or self._from_folder()
        train, validation = cut_validation(named.pop("train"))
        test = named.pop(self.settings.test)
        if self.overlaps:
            notes["overlaps"] = list(self.overlaps)
        return Splits(
            train=self.chosen(train),
            validation=validation,
            test=test,
            source=source,
            how=f"{self._test_in_words()}; {CUT}",
            labels=self.layout.labels,
            extra=named,
            notes=notes,
        )

    def chosen(self, train: Rows) -> Rows:
        """Returns the training rows that were asked for."""
        return subset(train, self.settings.rows)

    def _test_in_words(self) -> str:
        folder, test = self.settings.folder, self.settings.test
        if folder:
            return f"test is {self.layout.tests[test][0]} of {folder}, which need not be GLUE's own split"
        return TEST[test]

    def _wanted(self) -> dict[str, tuple[str, str]]:
        """Returns name -> (file, hub split) of the sets to read; MNLI's other dev set comes along."""
        also = {"mismatched"} & set(self.layout.tests) if self.settings.test == "dev" else set()
        return {"train": ("train.tsv", "train")} | {
            name: where for name, where in self.layout.tests.items() if name in {self.settings.test, *also}
        }

    def _from_hub(self) -> tuple[dict[str, Rows], str, dict] | None:
        if (
            self.settings.data_dir or self.settings.folder or os.environ.get("GLUE_DATA")
        ):  # a folder that the user named
            return None
        dataset = hub_dataset(HUB, self.settings.layout_name)
        if dataset is None:
            return None
        source, layout = f"hub {HUB}, {self.settings.layout_name}", self.layout
        named = {
            name: hub_rows(dataset, split, layout.hub_columns, layout.labels, source, layout.limits)
            for name, (_, split) in self._wanted().items()
        }
        return named, source, {}

    def _from_folder(self) -> tuple[dict[str, Rows], str, dict]:
        root = self.settings.data_dir or os.environ.get("GLUE_DATA")
        classic = self.settings.folder or self.layout.folder
        if not root:
            reason = "task.folder needs it" if self.settings.folder else f"the model hub ({HUB}) does not answer"
            raise DataMissing(
                f"task {self.name}: {reason}; type task.data_dir=<your glue_data folder that holds {classic}/>,"
                " or set the environment variable GLUE_DATA to it"
            )
        folder = Path(root).expanduser() / classic
        named: dict[str, Rows] = {}
        notes: dict = {}
        for name, (file, _) in self._wanted().items():
            if name not in {"train", self.settings.test} and not (folder / file).is_file():
                notes[name] = f"absent: {file} is not in the folder"
                continue
            table, left_out = read_glue(folder / file, self.layout)
            named[name] = to_rows(table, self.layout.raw, self.layout.limits)
            if left_out:
                notes.setdefault("left_out", {})[file] = left_out
        return named, f"folder {folder}", notes
