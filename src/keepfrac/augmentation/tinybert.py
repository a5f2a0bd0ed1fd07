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

import torch

from keepfrac.augmentation.candidates import KINDS, Choice, Store
from keepfrac.augmentation.maker import Maker, Recipe, folder_of
from keepfrac.augmentation.neighbours import glove_digest
from keepfrac.augmentation.variants import more_rows
from keepfrac.errors import UserError
from keepfrac.storage.cache import cache_folder
from keepfrac.storage.fingerprint import fingerprint_of_folder
from keepfrac.tasks.rows import TEXTS, Rows

log = logging.getLogger(__name__)

WORDS = ("auto", "masked_lm", "neighbours")
TOLD_SECONDS = 10.0
Tell = Callable[[int, int], None]


class TinyBertAugmentation:
    """Enlarges the training rows of a task.

    Args:
        name: the augmentation's name in results.
        times: sentences drawn of each sentence, >= 1; None: by task, as `times_of` says.
        times_of: task -> sentences drawn of each sentence; `other` holds for tasks that are not in it.
        p: probability of a word to be replaced, in [0, 1].
        candidates: M, words among which its replacement is drawn, >= 1.
        words: "auto": from the masked language model where there is one; "masked_lm": no head is an error;
            "neighbours": from the table alone, which needs no forward pass.
        model: the masked language model: a run's folder, a model's folder or a name on the hub.
        package: its offline source; None: there is none.
        glove: a GloVe text file for words of several pieces; None: the model's input embeddings.
        glove_words: lines of that file that are read, >= 1.
        seed: of the draws, >= 0.
    """

    def __init__(
        self,
        *,
        name: str,
        times: int | None,
        times_of: Mapping[str, int],
        p: float,
        candidates: int,
        words: str,
        model: str,
        package: str | None,
        glove: str | None,
        glove_words: int,
        seed: int,
    ):
        if words not in WORDS:
            raise UserError(f"augment.words={words}: allowed are {', '.join(WORDS)}")
        for key, value in {"times": times, "candidates": candidates, "glove_words": glove_words}.items():
            if value is not None and value < 1:
                raise UserError(f"augment.{key}={value}: allowed are whole numbers from 1")
        if not 0 <= p <= 1:
            raise UserError(f"augment.p={p}: allowed are numbers in [0, 1]")
        self.name, self.times, self.times_of, self.p = name, times, times_of, p
        self.candidates, self.words, self.seed = candidates, words, seed
        self.model, self.package = model, package
        self.glove, self.glove_words = glove, glove_words

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

    def __call__(self, rows: Rows, *, task: str, leads: bool, device: str, bf16: bool, tell: Tell) -> tuple[Rows, dict]:
        """Returns the rows, each followed by its variants, and an account of how they were made.

        Args:
            rows: the training rows.
            task: their task's name.
            leads: whether this process of the run does the work; the others wait for it and read.
            device: where the masked language model runs, "cpu" or "cuda".
            bf16: whether it computes in bfloat16.
            tell: is told (sentences done, all sentences) while the work is done.

        Raises:
            UserError: the task has no sentences, or none of their words can be replaced.
        """
        if "text" not in rows:
            raise UserError(f"augment={self.name}: task {task} has no sentences; allowed are tasks of texts")
        choices = self._choices(rows, leads, device, torch.bfloat16 if bf16 else torch.float32, tell)
        words = _counted(choices.values())
        if sum(words.values()) == words["none"]:
            raise UserError(f"augment={self.name}: no word of task {task}'s training rows can be replaced")
        times = self.times or self.times_of.get(task, self.times_of["other"])
        more = more_rows(rows, choices.__getitem__, times, self.p, self.seed)
        log.info("augment=%s: %d training rows became %d (words: %s)", self.name, len(rows), len(more), words)
        table = f"GloVe {Path(self.glove).name}" if self.glove else "input embeddings"
        account = {"name": self.name, "times": times, "rows_before": len(rows), "words": words}
        return more, {**account, "model": self.model, "table": table}

    def _choices(self, rows: Rows, leads: bool, device: str, dtype: torch.dtype, tell: Tell) -> dict[str, list[Choice]]:
        """Returns the choices of each sentence, from the cache where they are there: p, N and the seed come later."""
        sentences = list(dict.fromkeys(text for column in TEXTS if column in rows for text in rows[column]))
        folder = folder_of(self.model, self.package)
        recipe = Recipe(folder, self.model, self.words, self.candidates, self.glove, self.glove_words, dtype)
        entry = cache_folder("augment") / recipe.key(sentences)
        store = Store(entry, Maker(recipe, device), leads, _Watch(tell))
        return dict(zip(sentences, store.choices(sentences), strict=True))


class _Watch:
    """Tells how far the work is, and writes a line to the log every few seconds."""

    def __init__(self, tell: Tell):
        self.tell, self.begin, self.logged = tell, time.monotonic(), 0.0

    def __call__(self, done: int, of: int) -> None:
        self.tell(done, of)
        now = time.monotonic()
        if now - self.logged > TOLD_SECONDS or done == of:
            self.logged = now
            log.info("augment: %d of %d sentences after %.0f s", done, of, now - self.begin)


def _counted(choices: Iterable[list[Choice]]) -> dict[str, int]:
    """Returns how many words of the sentences have candidates of each kind."""
    found = Counter(choice.kind for one in choices for choice in one)
    return {kind: found[kind] for kind in KINDS}
