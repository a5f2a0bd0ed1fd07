"""DataToText: E2E, DART and WebNLG, from a user's own folder or the hub's parquet copy.

The order of sources: a folder that the user names (`data_dir`, or an environment variable such as E2E_DATA), the hub
or its local cache, one error.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from keepfrac.errors import DataMissing, UserError
from keepfrac.settings import choice, count, settings, text
from keepfrac.tasks.data.corpora import LAYOUTS, SPLITS, CorpusSplit, read_folder, read_split
from keepfrac.tasks.data.hub_data import hub_dataset
from keepfrac.tasks.generation import GenerationTask
from keepfrac.tasks.rows import SUBSET_SEED, Rows, Splits, subset

HOW = "the corpus' own splits; a training row is one reference, a row of validation or test an MR with its own"


class DataToText(GenerationTask):
    """A corpus of meaning representations (MRs) with references."""

    @settings
    class Settings(GenerationTask.Settings):
        """The corpus, and where it is read."""

        layout: str = choice("how its files are read", *LAYOUTS)
        path: str = text("dataset on the hub, owner/name")
        config: str | None = text("configuration of the dataset on the hub; null: its only one", null=True)
        revision: str | None = text("branch on the hub that holds the parquet copy; null: the main one", null=True)
        data_dir: str | None = text(
            "the folder with the three files, read instead of the hub; null: the folder that the environment variable"
            " <LAYOUT>_DATA names, else the hub",
            null=True,
        )
        eval_examples: int | None = count(
            "MRs of validation and of test that are generated for, the same for every seed; null: all", null=True
        )

    settings: Settings

    def __init__(self, settings: Settings):
        super().__init__(settings)
        self.layout, self.variable = LAYOUTS[settings.layout], f"{settings.layout.upper()}_DATA"
        self._references: list[list[str]] = []

    def references(self, number: int) -> Sequence[str]:
        """Returns the references of an MR by its number."""
        return self._references[number]

    def read(self) -> Splits:
        """Reads the first source there is; bounds the MRs that are generated for."""
        corpus, source = self._corpus()
        self._references = []
        pairs = corpus["train"].pairs
        train = Rows({"text": [mr for mr, _ in pairs], "reference": [reference for _, reference in pairs]})
        by_mr = {split: part.by_mr() for split, part in corpus.items()}
        validation, test = (self._evaluation_rows(by_mr[split]) for split in ("validation", "test"))
        notes = self._notes(corpus, by_mr)
        return Splits(
            train=subset(train, self.settings.rows, "text"),
            validation=validation,
            test=test,
            source=source,
            how=HOW,
            labels=None,
            notes=notes,
        )

    def _evaluation_rows(self, by_mr: dict[str, list[str]]) -> Rows:
        """Returns one row per MR, numbered on from what is there already."""
        kept, wanted = list(by_mr), self.settings.eval_examples
        if wanted is not None:
            order = np.random.default_rng(SUBSET_SEED).permutation(len(kept))
            kept = [kept[i] for i in np.sort(order[:wanted])]
        start, references = len(self._references), [by_mr[mr] for mr in kept]
        self._references += references
        return Rows({"text": kept, "references": references, "number": list(range(start, start + len(kept)))})

    def _notes(self, corpus: dict[str, CorpusSplit], by_mr: dict[str, dict]) -> dict:
        search = ", ".join(f"{key}={value}" for key, value in self.search.items())
        wanted = self.settings.eval_examples
        asked = "all" if wanted is None else f"{wanted} of"
        return {
            "meanings": {split: len(some) for split, some in by_mr.items()},
            # left out, such as those whose texts a checker all refused
            "meanings_without_references": {
                split: len({*part.without_reference} - by_mr[split].keys()) for split, part in corpus.items()
            },
            "generated": f"for {asked} the meanings of validation and test, {search}, "
            f"max_new_tokens={self.settings.max_new_tokens}",
        }

    def _corpus(self) -> tuple[dict[str, CorpusSplit], str]:
        folder = self.settings.data_dir or os.environ.get(self.variable)
        if folder:
            path = Path(folder).expanduser()
            return read_folder(path, self.layout), f"folder {path}"
        return self._from_hub()

    def _from_hub(self) -> tuple[dict[str, CorpusSplit], str]:
        path, revision = self.settings.path, self.settings.revision
        wanted = ", ".join(self.layout.files.values())
        own = f"type task.data_dir=<your folder with {wanted}>, or set the environment variable {self.variable} to it"
        try:
            dataset = hub_dataset(path, self.settings.config, revision)
        except UserError as error:  # also a script data set, which no longer loads
            raise UserError(f"{error}; or {own}") from error
        if dataset is None:
            raise DataMissing(f"task {self.name}: the model hub ({path}) does not answer; {own}")
        source = f"hub {path}" + (f", {revision}" if revision else "")
        names = {split: [name for name in dataset if name.startswith(SPLITS[split])] for split in SPLITS}
        for split, found in names.items():
            if not found:
                raise UserError(f"{source} has no {split} split; there are {', '.join(dataset)}; {own}")
        return {
            split: read_split(dataset[found[0]], self.layout, f"{source}, {found[0]}") for split, found in names.items()
        }, source
