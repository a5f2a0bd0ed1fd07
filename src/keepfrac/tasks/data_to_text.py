"""DataToText: E2E, DART and WebNLG, from a user's own folder or the hub's parquet copy.

The order of sources: a folder that the user names (`data_dir`, or an environment variable such as E2E_DATA), the hub
or its local cache, one error.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from keepfrac.errors import DataMissing, UserError
from keepfrac.tasks.data.corpora import LAYOUTS, SPLITS, Pairs, grouped, pairs_of, read_folder
from keepfrac.tasks.data.hub_data import hub_dataset
from keepfrac.tasks.generation import GenerationTask
from keepfrac.tasks.rows import SUBSET_SEED, Rows, Splits, subset

HOW = "the corpus' own splits; a training row is one reference, a row of validation or test a meaning with its own"


class DataToText(GenerationTask):
    """A corpus of meanings with references.

    Args:
        name: the task's name in results.
        layout: e2e, dart or webnlg: how its files are read.
        path: dataset on the hub, owner/name.
        config: configuration of the dataset on the hub; None: its only one.
        revision: branch on the hub that holds the parquet copy; None: the main one.
        data_dir: the user's folder with the three files, read instead of the hub; None: the folder that the environment
            variable <LAYOUT>_DATA names, else the hub.
        eval_examples: how many meanings of validation and of test are generated for, the same for every seed; None:
            all.
        prompt: see GenerationTask, as for all others.
    """

    def __init__(
        self,
        *,
        name: str,
        layout: str,
        path: str,
        config: str | None,
        revision: str | None,
        data_dir: str | None,
        eval_examples: int | None,
        prompt: str,
        rows: int | None,
        max_length: int,
        max_new_tokens: int,
        beams: int,
        length_penalty: float,
        no_repeat: int,
        label_smoothing: float,
        metrics: Sequence[str] | None,
        best_metric: str | None,
        batch_size: int,
        eval_batch_size: int,
        seed: int,
        num_workers: int,
    ):
        if layout not in LAYOUTS:
            raise UserError(f"task.layout={layout}: allowed are {', '.join(LAYOUTS)}")
        if eval_examples is not None and not (isinstance(eval_examples, int) and eval_examples >= 1):
            raise UserError(f"task.eval_examples={eval_examples}: allowed are whole numbers from 1, and null for all")
        super().__init__(
            name=name,
            prompt=prompt,
            rows=rows,
            max_length=max_length,
            max_new_tokens=max_new_tokens,
            beams=beams,
            length_penalty=length_penalty,
            no_repeat=no_repeat,
            label_smoothing=label_smoothing,
            metrics=metrics,
            best_metric=best_metric,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            seed=seed,
            num_workers=num_workers,
        )
        self.layout, self.variable = LAYOUTS[layout], f"{layout.upper()}_DATA"
        self.path, self.config, self.revision = path, config, revision
        self.data_dir, self.eval_examples = data_dir, eval_examples
        self._references: list[list[str]] = []
        self._unsaid: dict[str, list[str]] = {}

    def references(self, number: int) -> Sequence[str]:
        """Returns the references of a meaning by its number."""
        return self._references[number]

    def read(self) -> Splits:
        """Reads the first source there is; bounds the meanings that are generated for."""
        self._unsaid = {}
        pairs, source = self._pairs()
        self._references = []
        train = Rows({"text": [m for m, _ in pairs["train"]], "reference": [r for _, r in pairs["train"]]})
        validation, test = (self._meanings(pairs[split]) for split in ("validation", "test"))
        return Splits(
            train=subset(train, self.rows, "text"),
            validation=validation,
            test=test,
            source=source,
            how=HOW,
            labels=None,
            notes=self._notes(pairs),
        )

    def _meanings(self, pairs: Pairs) -> Rows:
        """Returns one row per meaning, numbered on from what is there already."""
        found = grouped(pairs)
        kept = list(found)
        if self.eval_examples is not None:
            order = np.random.default_rng(SUBSET_SEED).permutation(len(kept))
            kept = [kept[i] for i in np.sort(order[: self.eval_examples])]
        start = len(self._references)
        self._references += [found[meaning] for meaning in kept]
        numbers = list(range(start, len(self._references)))
        return Rows({"text": kept, "references": [found[meaning] for meaning in kept], "number": numbers})

    def _notes(self, pairs: dict[str, Pairs]) -> dict:
        found = {split: grouped(some) for split, some in pairs.items()}
        unsaid = {split: len(set(some) - set(found[split])) for split, some in self._unsaid.items()}
        search = ", ".join(f"{key}={value}" for key, value in self.search.items())
        asked = "all" if self.eval_examples is None else f"{self.eval_examples} of"
        return {
            "meanings": {split: len(some) for split, some in found.items()},
            "meanings_without_references": unsaid,  # left out, such as those whose texts a checker all refused
            "generated": f"for {asked} the meanings of validation and test, {search}, "
            f"max_new_tokens={self.max_new_tokens}",
        }

    def _pairs(self) -> tuple[dict[str, Pairs], str]:
        folder = self.data_dir or os.environ.get(self.variable)
        if folder:
            path = Path(folder).expanduser()
            return read_folder(path, self.layout, self._unsaid), f"folder {path}"
        return self._from_hub()

    def _from_hub(self) -> tuple[dict[str, Pairs], str]:
        wanted = ", ".join(self.layout.files.values())
        own = f"type task.data_dir=<your folder with {wanted}>, or set the environment variable {self.variable} to it"
        try:
            dataset = hub_dataset(self.path, self.config, self.revision)
        except UserError as error:  # also a script data set, which no longer loads
            raise UserError(f"{error}; or {own}") from error
        if dataset is None:
            raise DataMissing(f"task {self.name}: the model hub ({self.path}) does not answer; {own}")
        source = f"hub {self.path}" + (f", {self.revision}" if self.revision else "")
        names = {split: [name for name in dataset if name.startswith(SPLITS[split])] for split in SPLITS}
        for split, found in names.items():
            if not found:
                raise UserError(f"{source} has no {split} split; there are {', '.join(dataset)}; {own}")
        return {
            split: pairs_of(dataset[found[0]], self.layout, f"{source}, {found[0]}", self._unsaid.setdefault(split, []))
            for split, found in names.items()
        }, source
