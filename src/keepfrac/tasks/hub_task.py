"""HubTask: texts of a dataset on the model hub, or of a package or folder that stands in for it.

The order: a folder that the user names (`data_dir`), the hub or its local cache, the package of `offline`, one error.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from keepfrac.errors import DataMissing
from keepfrac.settings import choice, setting, settings
from keepfrac.settings import text as text_field
from keepfrac.storage import archives
from keepfrac.tasks.base import LIST
from keepfrac.tasks.data.files import SUFFIXES, Table, read_table, text_columns
from keepfrac.tasks.data.hub_data import hub_dataset, hub_rows
from keepfrac.tasks.data.labels import to_rows
from keepfrac.tasks.rows import Splits, cut_three, cut_validation, refuse_copies, subset
from keepfrac.tasks.text import TextTask

CUT = "validation is 10 % of train (5,000 rows at most) by a hash of the text"
OFFLINE = {"movie_reviews": archives.movie_reviews}
"""Key of an archive -> the function that gives its texts and its labels as class numbers."""


class HubTask(TextTask):
    """One text per row, or two, and a class."""

    @settings
    class Settings(TextTask.Settings):
        """The dataset and its columns."""

        path: str = text_field("dataset on the hub, owner/name")
        config: str | None = text_field("configuration of the dataset; null: its only one", null=True)
        text: str = text_field("column of the text")
        text_pair: str | None = text_field("column of the second text; null: one text", null=True)
        label: str = text_field("column of the class number")
        labels: Sequence = setting("names of the classes in the order of their numbers", LIST)
        offline: str | None = choice("the archive that is read where the hub does not answer", *OFFLINE, null=True)
        data_dir: str | None = text_field(
            "a folder with train, test and optionally validation files (.csv, .tsv, .jsonl; the columns above, labels"
            " as numbers) that is read instead of the hub; null: the hub",
            null=True,
        )
        overlaps: Sequence[str] = setting(
            "tasks that share rows with this one: no model may be evaluated on both", LIST
        )

    settings: Settings
    problem = "classification"

    def __init__(self, settings: Settings):
        super().__init__(settings)
        self.columns = text_columns(settings.text, settings.text_pair, settings.label)
        self.names = tuple(str(one) for one in settings.labels)
        self.overlaps = tuple(settings.overlaps)

    def read(self) -> Splits:
        """Reads the first source there is."""
        splits = self._from_folder() if self.settings.data_dir else self._from_hub() or self._from_archive()
        notes = {**splits.notes, **({"overlaps": list(self.overlaps)} if self.overlaps else {})}
        return replace(splits, train=subset(splits.train, self.settings.rows), notes=notes)

    def _from_hub(self) -> Splits | None:
        dataset = hub_dataset(self.settings.path, self.settings.config)
        if dataset is None:
            return None
        source = f"hub {self.settings.path}" + (f", {self.settings.config}" if self.settings.config else "")
        read = {
            split: hub_rows(dataset, split, self.columns, self.names, source)
            for split in ("train", "validation", "test")
            if split != "validation" or split in dataset
        }
        return self._with_validation(read, source)

    def _from_folder(self) -> Splits:
        folder = Path(str(self.settings.data_dir)).expanduser()
        numbers = [str(i) for i in range(len(self.names))]
        read = {}
        for split in ("train", "validation", "test"):
            files = [file for suffix in SUFFIXES if (file := folder / f"{split}{suffix}").is_file()]
            if files:
                read[split] = to_rows(read_table(files[0], self.columns), numbers)
            elif split != "validation":
                raise DataMissing(f"task.data_dir={folder}: no {split} file there (.csv, .tsv or .jsonl)")
        refuse_copies(read, {split: f"task.data_dir={folder}, {split}" for split in read})
        return self._with_validation(read, f"folder {folder}")

    def _with_validation(self, read: dict, source: str) -> Splits:
        if "validation" in read:
            return Splits(
                train=read["train"],
                validation=read["validation"],
                test=read["test"],
                source=source,
                how="as published",
                labels=self.names,
            )
        train, validation = cut_validation(read["train"])
        return Splits(
            train=train,
            validation=validation,
            test=read["test"],
            source=source,
            how=f"test as published; {CUT}",
            labels=self.names,
        )

    def _from_archive(self) -> Splits:
        if self.settings.offline is None:
            raise DataMissing(
                f"{self.settings.path}: the model hub does not answer, and there is no offline copy of this dataset;"
                f" give task.data_dir=<a folder with its train and test files>"
            )
        try:
            texts, labels = OFFLINE[self.settings.offline]()
        except DataMissing as error:
            raise DataMissing(f"{self.settings.path}: the model hub does not answer, and {error}") from None
        archive = archives.ARCHIVES[self.settings.offline]
        file = Path(next(iter(archive.files)))
        table = Table(file, {"text": list(texts), "label": list(labels)}, list(range(1, len(texts) + 1)))
        rows = to_rows(table, [str(i) for i in range(len(self.names))])
        how = "train, validation and test are 80, 10 and 10 % by a hash of the text: not the published splits"
        return Splits(*cut_three(rows), f"package {archive.distribution} {archive.version}", how, self.names)
