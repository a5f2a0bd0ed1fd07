"""A tokenizer made from a task's own training text: for a model that is trained from scratch.

[PAD] [UNK] [CLS] [SEP] [MASK] have the ids 0 to 4. A text becomes [CLS] text [SEP], two texts [CLS] a [SEP] b [SEP].

    words       what white space separates; the most frequent ones, equals in alphabetical order
    wordpiece   BERT's pieces, trained by `tokenizers` on texts divided at white space and punctuation
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tokenizers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from keepfrac.errors import UserError
from keepfrac.storage.cache import cache_folder
from keepfrac.storage.files import write_atomically

KINDS = ("words", "wordpiece")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD, UNK, CLS, SEP, MASK = SPECIAL
VERSION = 1


@dataclass(frozen=True)
class Vocabulary:
    """What `model.tokenizer` says of a vocabulary that is to be made.

    Args:
        kind: words | wordpiece.
        size: most entries, the five special ones included, >= 6.
        min_count: how often a word (of wordpiece: a pair that is merged) has to occur, >= 1.
        lowercase: whether capitals count as small letters (and, of wordpiece, letters lose their accents).
    """

    kind: str
    size: int
    min_count: int
    lowercase: bool

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"model.tokenizer.kind={self.kind}: must be one of {', '.join(KINDS)}")
        for name, least in {"size": len(SPECIAL) + 1, "min_count": 1}.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UserError(f"model.tokenizer.{name}={value}: must be a whole number >= {least}")
        if not isinstance(self.lowercase, bool):
            raise UserError(f"model.tokenizer.lowercase={self.lowercase}: must be true or false")

    @classmethod
    def of(cls, settings: Mapping) -> "Vocabulary":
        """Returns it from its settings.

        Raises:
            UserError: a key is missing or unknown, or a value is not allowed.
        """
        names = tuple(cls.__dataclass_fields__)
        if set(settings) != set(names):
            raise UserError(f"model.tokenizer={dict(settings)}: a vocabulary has the keys {', '.join(names)}")
        return cls(**settings)

    def build(self, texts: Sequence[str]) -> Tokenizer:
        """Returns the tokenizer of `texts`."""
        return _words(texts, self) if self.kind == "words" else _wordpiece(texts, self)


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
        json.dumps([VERSION, tokenizers.__version__, vars(vocabulary), sentences]).encode()
    ).hexdigest()
    backend = _cached(cache_folder("vocabularies") / f"{digest}.json", lambda: vocabulary.build(sentences))
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
