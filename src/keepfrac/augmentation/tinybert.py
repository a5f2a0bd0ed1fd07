"""TinyBERT's data augmentation: more training rows, in which some words are replaced by others that may stand there.

Each word of a sentence is replaced with probability p by one of M candidates; N sentences are drawn of each, and the
label is kept. Candidates of a word that is one piece of the vocabulary come from a masked language model that reads
`[CLS] masked sentence [SEP] sentence [SEP]`; those of a word of several pieces are its nearest neighbours by cosine in
a table: a GloVe file, or the model's input embeddings. Stop words and words with other signs than letters stay. Of a
pair of sentences each is varied in turn.

A model without a masked-LM head gives its input embeddings only: then all words get neighbours, a warning says so, and
`provenance.data.augmented.words` in the results counts which words got what (`words=masked_lm` makes it an error).

Departures from TinyBERT's code: a word is no candidate for itself, so that p is what it says; M counts whole words, not
those that are left of M pieces; while the second sentence of a pair is varied the first is the original and not its
last variant; the original stands once; the text keeps its spelling around the replaced words; a word beyond what the
model can read twice gets neighbours; draws depend on the row's texts and the seed, so that a subset of the rows has the
same variants.

Source: data_augmentation.py of TinyBERT (Jiao et al. 2020, arXiv 1909.10351).
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import ClassVar

import torch

from keepfrac.augmentation.candidates import KINDS, Store, WordCandidates
from keepfrac.augmentation.maker import Maker, folder_of
from keepfrac.augmentation.neighbours import glove_digest
from keepfrac.augmentation.variants import more_rows
from keepfrac.errors import UserError
from keepfrac.settings import Settings as AnySettings
from keepfrac.settings import choice, count, mapping, settings, share, text, whole
from keepfrac.storage.cache import cache_folder
from keepfrac.storage.fingerprint import fingerprint_of_folder
from keepfrac.tasks.rows import TEXTS, Rows

log = logging.getLogger(__name__)

LOG_EVERY_SECONDS = 10.0
ReportProgress = Callable[[int, int], None]


class TinyBertAugmentation:
    """Enlarges the training rows of a task."""

    @settings
    class Settings(AnySettings):
        """Where candidates come from, and how many sentences are drawn."""

        where: ClassVar[str] = "augment"

        name: str = text("the augmentation's name in results")
        times: int | None = count("sentences drawn of each sentence; null: by task, as `times_of` says", null=True)
        times_of: Mapping[str, int] = mapping(
            "task -> sentences drawn of each sentence; `other` holds for tasks that are not in it", whole(1)
        )
        p: float = share("probability of a word to be replaced")
        candidates: int = count("M, words among which a word's replacement is drawn")
        words: str = choice(
            "auto: from the masked language model where there is one; masked_lm: no head is an error; neighbours: from"
            " the table alone, which needs no forward pass",
            "auto",
            "masked_lm",
            "neighbours",
        )
        model: str = text("the masked language model: a run's folder, a model's folder or a name on the hub")
        package: str | None = text("its offline source; null: there is none", null=True)
        glove: str | None = text(
            "a GloVe text file for words of several pieces; null: the model's input embeddings", null=True
        )
        glove_words: int = count("lines of that file that are read")
        seed: int = count("of the draws", 0)

        def check(self) -> None:
            if "other" not in self.times_of:
                raise self.error("times_of", "needs a number for `other`")

    def __init__(self, settings: Settings):
        self.settings = settings

    @staticmethod
    def contents(settings: dict) -> dict:
        """Returns settings in which a folder or file is named by its content: what a cell's identity is made of.

        Raises:
            UserError: the model or the file is not to be had.
        """
        model, glove = settings["model"], settings["glove"]
        folder = folder_of(model, settings["package"])  # what is missing is found before a sweep starts
        return settings | {
            "model": fingerprint_of_folder(Path(folder)) if Path(model).is_dir() else model,
            "glove": glove_digest(glove, settings["glove_words"]) if glove else None,
        }

    def __call__(
        self, rows: Rows, *, task: str, leads: bool, device: str, bf16: bool, report_progress: ReportProgress
    ) -> tuple[Rows, dict]:
        """Returns the rows, each followed by its variants, and an account of how they were made.

        Args:
            rows: the training rows.
            task: their task's name.
            leads: whether this process of the run does the work; the others wait for it and read.
            device: where the masked language model runs, "cpu" or "cuda".
            bf16: whether it computes in bfloat16.
            report_progress: called with (sentences done, all sentences) while the work is done.

        Raises:
            UserError: the task has no sentences, or none of their words can be replaced.
        """
        own = self.settings
        if "text" not in rows:
            raise UserError(f"augment={own.name}: task {task} has no sentences; allowed are tasks of texts")
        if of_parts := sorted(rows.columns.keys() - {*TEXTS, "label"}):
            raise UserError(
                f"augment={own.name}: rows of task {task} have {', '.join(of_parts)} beside their texts, which other"
                " words would no longer fit; allowed are tasks whose label is that of the whole text"
            )
        found = self._candidates(
            rows, leads, Maker(own, device, torch.bfloat16 if bf16 else torch.float32), report_progress
        )
        words = _counted(found.values())
        if sum(words.values()) == words["none"]:
            raise UserError(f"augment={own.name}: no word of task {task}'s training rows can be replaced")
        times = own.times or own.times_of.get(task, own.times_of["other"])
        more = more_rows(rows, found.__getitem__, times, own.p, own.seed)
        log.info("augment=%s: %d training rows became %d (words: %s)", own.name, len(rows), len(more), words)
        table = f"GloVe {Path(own.glove).name}" if own.glove else "input embeddings"
        account = {"name": own.name, "times": times, "rows_before": len(rows), "words": words}
        return more, {**account, "model": own.model, "table": table}

    def _candidates(
        self, rows: Rows, leads: bool, maker: Maker, report_progress: ReportProgress
    ) -> dict[str, list[WordCandidates]]:
        """Returns the candidates of each sentence, from the cache where they are: p, N and the seed come later."""
        sentences = list(dict.fromkeys(text for column in TEXTS if column in rows for text in rows[column]))
        store = Store(cache_folder("augment") / maker.key(sentences), maker, leads, _LoggedProgress(report_progress))
        return dict(zip(sentences, store.candidates(sentences), strict=True))


class _LoggedProgress:
    """Passes on how far the work is, and writes a line to the log every few seconds."""

    def __init__(self, report_progress: ReportProgress):
        self.report_progress, self.begin, self.logged = report_progress, time.monotonic(), 0.0

    def __call__(self, done: int, of: int) -> None:
        self.report_progress(done, of)
        now = time.monotonic()
        if now - self.logged > LOG_EVERY_SECONDS or done == of:
            self.logged = now
            log.info("augment: %d of %d sentences after %.0f s", done, of, now - self.begin)


def _counted(found: Iterable[list[WordCandidates]]) -> dict[str, int]:
    """Returns how many words of the sentences have candidates of each kind."""
    counts = Counter(word.kind for one in found for word in one)
    return {kind: counts[kind] for kind in KINDS}
