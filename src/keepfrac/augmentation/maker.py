"""Candidates for the words of sentences, from a masked language model and a table of neighbours."""

import functools
import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from keepfrac.augmentation.candidates import Candidates, WordCandidates
from keepfrac.augmentation.masked import MaskedWords
from keepfrac.augmentation.neighbours import Neighbours, from_embeddings, from_glove, glove_digest
from keepfrac.augmentation.words import Sentence, Word, check_tokenizer, find_words
from keepfrac.errors import UserError
from keepfrac.models.load import load_masked_lm, load_tokenizer
from keepfrac.models.locate import locate
from keepfrac.models.matching import check_embeddings
from keepfrac.storage import hub
from keepfrac.storage.fingerprint import fingerprint_of_folder

if TYPE_CHECKING:
    from keepfrac.augmentation.tinybert import TinyBertAugmentation

log = logging.getLogger(__name__)

VERSION = 2


class Maker:
    """Gives candidates; model and table are loaded when the first are asked for.

    Args:
        settings: where candidates come from.
        device: where the model runs, "cpu" or "cuda".
        dtype: in which the model computes.

    Raises:
        DataMissing: the model is not to be had here.
    """

    def __init__(self, settings: "TinyBertAugmentation.Settings", device: str, dtype: torch.dtype):
        self.settings, self.device, self.dtype = settings, device, dtype
        self.folder = folder_of(settings.model, settings.package)

    def key(self, sentences: Sequence[str]) -> str:
        """Returns a sha256 of the content of all that candidates depend on, and of the sentences."""
        own = self.settings
        text = json.dumps(list(sentences), ensure_ascii=False).encode("utf-8", "surrogatepass")
        parts = [
            VERSION,
            hashlib.sha256(text).hexdigest(),
            fingerprint_of_folder(Path(self.folder)),
            glove_digest(own.glove, own.glove_words) if own.glove else None,
            own.words,
            own.candidates,
            str(self.dtype),
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def __call__(self, texts: Sequence[str]) -> Candidates:
        """Returns the candidates of some sentences.

        Raises:
            UserError: the model, its tokenizer or the GloVe file is not what it must be.
        """
        sentences = find_words(self._tokenizer, texts)
        words = [(sentence, word) for sentence in sentences for word in sentence.words]
        predicted = iter(self._predicted([(one, word.first) for one, word in words if self._is_asked(word)]))
        return [
            [
                self._candidates(sentence, word, next(predicted) if self._is_asked(word) else None)
                for word in sentence.words
            ]
            for sentence in sentences
        ]

    def _is_asked(self, word: Word) -> bool:
        masked = self._sources[0]
        return masked is not None and word.pieces == 1 and masked.fits(word.first)

    def _predicted(self, asked: Sequence[tuple[Sentence, int]]) -> list[tuple[str, ...]]:
        masked = self._sources[0]
        return masked.predict(asked, self.settings.candidates) if masked else []

    def _candidates(self, sentence: Sentence, word: Word, predicted: tuple[str, ...] | None) -> WordCandidates:
        if predicted is not None:
            return WordCandidates(word.start, word.end, "masked_lm", predicted)
        near = self._sources[1].nearest(sentence.string(word), self.settings.candidates)
        return WordCandidates(word.start, word.end, "neighbours" if near else "none", near)

    @functools.cached_property
    def _tokenizer(self):
        tokenizer = load_tokenizer({"run": None, "name": self.folder, "tokenizer": None, "package": None})
        check_tokenizer(tokenizer)
        return tokenizer

    @functools.cached_property
    def _sources(self) -> tuple[MaskedWords | None, Neighbours]:
        """The masked language model, if it is one and is wanted, and the table."""
        own = self.settings
        with torch.random.fork_rng(devices=[]):  # new weights must not move the run's own random numbers
            net, has_head = load_masked_lm(self.folder)
        check_embeddings(net, self._tokenizer, f"augment.model={own.model}")
        if not has_head and own.words == "masked_lm":
            raise UserError(
                f"augment.words=masked_lm: {own.model} has no masked-LM head; give augment.model=<a masked"
                " language model>, or augment.words=neighbours"
            )
        if not has_head and own.words == "auto":
            log.warning("augment.model=%s has no masked-LM head: all words get nearest neighbours", own.model)
        if own.glove:
            table = from_glove(own.glove, own.glove_words)
        else:
            weight = net.get_input_embeddings().weight.detach().numpy().copy()
            table = from_embeddings(weight, self._tokenizer)
        if not has_head or own.words == "neighbours":
            return None, table
        return MaskedWords(net, self._tokenizer, self.device, self.dtype), table


def folder_of(model: str, package: str | None) -> str:
    """Returns the folder that holds a model: of a run, of a model, of the hub's local copy or of a package.

    Raises:
        DataMissing: it is not to be had here.
    """
    inner = Path(model) / "model"
    if inner.is_dir():
        return str(inner)
    found = locate(model, package, "augment.model")
    if Path(found).is_dir():
        return found
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.txt", "*.safetensors"]
    return snapshot_download(found, allow_patterns=wanted, local_files_only=not hub.hub_answers())
