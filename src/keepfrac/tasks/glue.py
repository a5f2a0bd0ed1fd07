"""GlueTask: the tasks of GLUE, from the hub or from a user's own folder in the classic layout.

GLUE hides the labels of its test sets, so its dev set is the test set here, and validation is cut from train by a hash
of the first text: rows that share it stay together. The metrics are the official ones.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from keepfrac.errors import DataMissing, UserError
from keepfrac.tasks.data.files import to_rows
from keepfrac.tasks.data.glue import LAYOUTS, read_glue
from keepfrac.tasks.data.hub_data import hub_dataset, hub_rows
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
    """One task of GLUE.

    Args:
        name: cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte or wnli.
        data_dir: the user's folder that holds the task's folder (such as MRPC/), read instead of the hub; None: the
            hub, and where it does not answer the folder named by the environment variable GLUE_DATA.
        folder: name of the task's folder, where it is not the classic one; None: the classic one.
        test: which labelled rows are the test set: "dev", for MRPC also "official", for MNLI also "mismatched".
        overlaps: names of tasks that share rows with this one, so that no model may be judged on both.
        rows: how many training rows to take; None: all.
        max_length: most tokens of a row, special tokens included.
        metrics: names of the metrics.
        best_metric: the metric, or "loss", that chooses the best checkpoint.
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
        folder: str | None,
        test: str,
        overlaps: Sequence[str],
        rows: int | None,
        max_length: int,
        metrics: Sequence[str] | None,
        best_metric: str | None,
        batch_size: int,
        eval_batch_size: int,
        seed: int,
        num_workers: int,
    ):
        if name not in LAYOUTS:
            raise UserError(f"task.name={name}: allowed are {', '.join(LAYOUTS)}")
        self.layout = LAYOUTS[name]
        if test not in self.layout.tests:
            raise UserError(f"task.test={test}: allowed for {name} are {', '.join(self.layout.tests)}")
        super().__init__(
            name=name,
            problem="regression" if self.layout.raw is None else "classification",
            rows=rows,
            max_length=max_length,
            metrics=metrics,
            best_metric=best_metric,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            seed=seed,
            num_workers=num_workers,
        )
        self.data_dir, self.folder, self.test = data_dir, folder, test
        self.overlaps = tuple(overlaps)

    def read(self) -> Splits:
        """Reads the first source there is, and cuts validation from train."""
        named, source, notes = self._from_hub() or self._from_folder()
        train, validation = cut_validation(named.pop("train"))
        test = named.pop(self.test)
        if self.overlaps:
            notes["overlaps"] = list(self.overlaps)
        return Splits(
            train=subset(train, self.rows),
            validation=validation,
            test=test,
            source=source,
            how=f"{self._test_in_words()}; {CUT}",
            labels=self.layout.labels,
            extra=named,
            notes=notes,
        )

    def _test_in_words(self) -> str:
        if self.folder:
            return f"test is {self.layout.tests[self.test][0]} of {self.folder}, which need not be GLUE's own split"
        return TEST[self.test]

    def _wanted(self) -> dict[str, tuple[str, str]]:
        """Returns name -> (file, hub split) of the sets to read; MNLI's other dev set comes along."""
        also = {"mismatched"} & set(self.layout.tests) if self.test == "dev" else set()
        return {"train": ("train.tsv", "train")} | {
            name: where for name, where in self.layout.tests.items() if name in {self.test, *also}
        }

    def _from_hub(self) -> tuple[dict[str, Rows], str, dict] | None:
        if self.data_dir or self.folder or os.environ.get("GLUE_DATA"):  # a folder that the user named
            return None
        dataset = hub_dataset(HUB, self.name)
        if dataset is None:
            return None
        source, layout = f"hub {HUB}, {self.name}", self.layout
        named = {
            name: hub_rows(dataset, split, layout.hub_columns, layout.labels, source, layout.limits)
            for name, (_, split) in self._wanted().items()
        }
        return named, source, {}

    def _from_folder(self) -> tuple[dict[str, Rows], str, dict]:
        root = self.data_dir or os.environ.get("GLUE_DATA")
        classic = self.folder or self.layout.folder
        if not root:
            reason = "task.folder needs it" if self.folder else f"the model hub ({HUB}) does not answer"
            raise DataMissing(
                f"task {self.name}: {reason}; type task.data_dir=<your glue_data folder that holds {classic}/>,"
                " or set the environment variable GLUE_DATA to it"
            )
        folder = Path(root).expanduser() / classic
        named: dict[str, Rows] = {}
        notes: dict = {}
        for name, (file, _) in self._wanted().items():
            if name not in {"train", self.test} and not (folder / file).is_file():
                notes[name] = f"absent: {file} is not in the folder"
                continue
            table, left_out = read_glue(folder / file, self.layout)
            named[name] = to_rows(table, self.layout.raw, self.layout.limits)
            if left_out:
                notes.setdefault("left_out", {})[file] = left_out
        return named, f"folder {folder}", notes
