"""A tokenizer made from a task's own training text: for a model that is trained from scratch.

[PAD] [UNK] [CLS] [SEP] [MASK] have the ids 0 to 4. A text becomes [CLS] text [SEP], two texts [CLS] a [SEP] b [SEP].

    words       what white space separates; the most frequent ones, equals in alphabetical order
    wordpiece   BERT's pieces, trained by `tokenizers` on texts divided at white space and punctuation
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import tokenizers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from keepfrac.errors import UserError
from keepfrac.models.vocabulary.recipe import SPECIAL, Vocabulary
from keepfrac.storage.cache import cache_folder
from keepfrac.storage.files import write_atomically

PAD, UNK, CLS, SEP, MASK = SPECIAL
VERSION = 1


def _make(texts: Sequence[str], settings: Vocabulary) -> Tokenizer:
    return _words(texts, settings) if settings.kind == "words" else _wordpiece(texts, settings)


def built(settings: Mapping, texts: Callable[[], Sequence[str]], config) -> PreTrainedTokenizerFast:
    """Returns the tokenizer made from `texts`, from the disk where the same was made before.

    Args:
        settings: see `Vocabulary`.
        texts: gives the training texts.
        config: of the model: how many positions it has, and whether it knows segments.

    Raises:
        UserError: the settings are wrong, or the texts hold no word.
    """
    vocabulary, sentences = Vocabulary.of(settings), texts()
    digest = hashlib.sha256(
        json.dumps([VERSION, tokenizers.__version__, vocabulary.plain(), sentences]).encode()
    ).hexdigest()
    backend = _cached(cache_folder("vocabularies") / f"{digest}.json", lambda: _make(sentences, vocabulary))
    if backend.get_vocab_size() == len(SPECIAL):
        raise UserError(f"model.tokenizer={dict(settings)}: the training texts hold no word that occurs so often")
    segments = ["token_type_ids"] if getattr(config, "type_vocab_size", 0) > 1 else []
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        unk_token=UNK,
        cls_token=CLS,
        sep_token=SEP,
        mask_token=MASK,
        model_max_length=getattr(config, "max_position_embeddings", None),
        model_input_names=["input_ids", *segments, "attention_mask"],
    )


def _cached(path: Path, build: Callable[[], Tokenizer]) -> Tokenizer:
    if path.is_file():
        return Tokenizer.from_file(str(path))
    backend = build()
    write_atomically(path, backend.to_str())
    return backend


def _words(texts: Sequence[str], vocabulary: Vocabulary) -> Tokenizer:
    normalizer = normalizers.Lowercase() if vocabulary.lowercase else None
    counts = Counter(
        word for text in texts for word in (normalizer.normalize_str(text) if normalizer else text).split()
    )
    often = [word for word in counts if counts[word] >= vocabulary.min_count and word not in SPECIAL]
    kept = sorted(often, key=lambda word: (-counts[word], word))[: vocabulary.size - len(SPECIAL)]
    ids = {word: number for number, word in enumerate((*SPECIAL, *kept))}
    backend = Tokenizer(models.WordLevel(ids, unk_token=UNK))
    if normalizer:
        backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _framed(backend)


def _wordpiece(texts: Sequence[str], vocabulary: Vocabulary) -> Tokenizer:
    backend = Tokenizer(models.WordPiece(unk_token=UNK))
    backend.normalizer = normalizers.BertNormalizer(lowercase=vocabulary.lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary.size,
        min_frequency=vocabulary.min_count,
        special_tokens=list(SPECIAL),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return _framed(backend)


def _framed(backend: Tokenizer) -> Tokenizer:
    """Adds the special tokens and what frames a text."""
    backend.add_special_tokens(list(SPECIAL))
    backend.post_processor = processors.TemplateProcessing(
        single=f"{CLS} $A {SEP}",
        pair=f"{CLS} $A {SEP} $B:1 {SEP}:1",
        special_tokens=[(token, backend.token_to_id(token)) for token in (CLS, SEP)],
    )
    return backend
