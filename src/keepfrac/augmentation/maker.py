"""Candidates for the words of sentences, from a masked language model and a table of neighbours."""

import functools
import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from keepfrac.augmentation.candidates import Choice, Choices
from keepfrac.augmentation.masked import MaskedWords
from keepfrac.augmentation.neighbours import Neighbours, from_embeddings, from_glove, glove_digest
from keepfrac.augmentation.words import Sentence, Word, check_tokenizer, find_words
from keepfrac.errors import DataMissing, UserError
from keepfrac.models.load import load_masked_lm, load_tokenizer
from keepfrac.models.locate import locate
from keepfrac.storage import hub
from keepfrac.storage.fingerprint import fingerprint_of_folder

log = logging.getLogger(__name__)

VERSION = 1


@dataclass(frozen=True)
class Recipe:
    """All that candidates depend on, beside the sentences.

    Args:
        folder: of the model.
        model: as the user named it.
        words: "auto", "masked_lm" or "neighbours".
        candidates: of each word.
        glove: a GloVe file; None: the model's input embeddings.
        glove_words: lines of it.
        dtype: in which the model computes.
    """

    folder: str
    model: str
    words: str
    candidates: int
    glove: str | None
    glove_words: int
    dtype: torch.dtype

    def key(self, sentences: Sequence[str]) -> str:
        """Returns a sha256 of the content of all of it and of the sentences."""
        text = json.dumps(list(sentences), ensure_ascii=False).encode("utf-8", "surrogatepass")
        parts = [
            VERSION,
            hashlib.sha256(text).hexdigest(),
            fingerprint_of_folder(Path(self.folder)),
            glove_digest(self.glove, self.glove_words) if self.glove else None,
            self.words,
            self.candidates,
            str(self.dtype),
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class Maker:
    """Gives candidates; model and table are loaded when the first are asked for.

    Args:
        recipe: what they come from.
        device: where the model runs, "cpu" or "cuda".
    """

    def __init__(self, recipe: Recipe, device: str):
        self.recipe, self.device = recipe, device

    def __call__(self, texts: Sequence[str]) -> Choices:
        """Returns the choices of some sentences.

        Raises:
            UserError: the model, its tokenizer or the GloVe file is not what it must be.
        """
        sentences = find_words(self._tokenizer, texts)
        words = [(sentence, word) for sentence in sentences for word in sentence.words]
        predicted = iter(self._predicted([(one, word.first) for one, word in words if self._is_asked(word)]))
        return [
            [self._choice(sentence, word, next(predicted) if self._is_asked(word) else None) for word in sentence.words]
            for sentence in sentences
        ]

    def _is_asked(self, word: Word) -> bool:
        masked = self._sources[0]
        return masked is not None and word.pieces == 1 and masked.fits(word.first)

    def _predicted(self, asked: Sequence[tuple[Sentence, int]]) -> list[tuple[str, ...]]:
        masked = self._sources[0]
        return masked.predict(asked, self.recipe.candidates) if masked else []

    def _choice(self, sentence: Sentence, word: Word, predicted: tuple[str, ...] | None) -> Choice:
        if predicted is not None:
            return Choice(word.start, word.end, "masked_lm", predicted)
        near = self._sources[1].nearest(sentence.string(word), self.recipe.candidates)
        return Choice(word.start, word.end, "neighbours" if near else "none", near)

    @functools.cached_property
    def _tokenizer(self):
        settings = {"run": None, "name": self.recipe.folder, "tokenizer": None, "package": None}
        tokenizer = load_tokenizer(settings)
        check_tokenizer(tokenizer)
        return tokenizer

    @functools.cached_property
    def _sources(self) -> tuple[MaskedWords | None, Neighbours]:
        """The masked language model, if it is one and is wanted, and the table."""
        recipe = self.recipe
        with torch.random.fork_rng(devices=[]):  # new weights must not move the run's own random numbers
            net, has_head = load_masked_lm(recipe.folder)
        if not has_head and recipe.words == "masked_lm":
            raise UserError(
                f"augment.words=masked_lm: {recipe.model} has no masked-LM head; give augment.model=<a masked"
                " language model>, or augment.words=neighbours"
            )
        if not has_head and recipe.words == "auto":
            log.warning("augment.model=%s has no masked-LM head: all words get nearest neighbours", recipe.model)
        if recipe.glove:
            table = from_glove(recipe.glove, recipe.glove_words)
        else:
            weight = net.get_input_embeddings().weight.detach().numpy().copy()
            table = from_embeddings(weight, self._tokenizer)
        if not has_head or recipe.words == "neighbours":
            return None, table
        return MaskedWords(net, self._tokenizer, self.device, recipe.dtype), table


def folder_of(model: str, package: str | None) -> str:
    """Returns the folder that holds a model: of a run, of a model, of the hub's local copy or of a package.

    Raises:
        DataMissing: it is not to be had here.
    """
    inner = Path(model) / "model"
    if inner.is_dir():
        return str(inner)
    try:
        found = locate(model, package)
    except DataMissing as error:
        raise DataMissing(str(error).replace("model.name=", "augment.model=")) from None
    if Path(found).is_dir():
        return found
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.txt", "*.safetensors"]
    return snapshot_download(found, allow_patterns=wanted, local_files_only=not hub.hub_answers())
