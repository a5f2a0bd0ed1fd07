"""The words of a sentence, where a masked language model finds them, and which of them may be replaced."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from keepfrac.errors import UserError

# Function words, and what is left of contractions where a tokenizer cuts at the apostrophe: to replace them changes
# the grammar or the truth of a sentence, not its words.
STOP_WORDS = frozenset(
    """
    a about above after again against ain all am an and any are aren as at be because been before being below
    between both but by can couldn d did didn do does doesn doing don down during each few for from further had
    hadn has hasn have haven having he her here hers herself him himself his how i if in into is isn it its itself
    just ll m ma me mightn more most mustn my myself needn no nor not now o of off on once only or other our ours
    ourselves out over own re s same shan she should shouldn so some such t than that the their theirs them
    themselves then there these they this those through to too under until up ve very was wasn we were weren what
    when where which while who whom why will with won wouldn y you your yours yourself yourselves
    """.split()  # noqa: SIM905 - a column of quoted words is no easier to read
)


@dataclass(frozen=True)
class Word:
    """One word that may be replaced.

    Args:
        start: its first character in the text.
        end: the character after its last.
        first: the position of its first piece among the sentence's.
        pieces: how many pieces it has.
    """

    start: int
    end: int
    first: int
    pieces: int


@dataclass(frozen=True)
class Sentence:
    """A text in pieces.

    Args:
        text: as it stands in the data.
        ids: its pieces, special ones left out.
        words: those that may be replaced, in order.
    """

    text: str
    ids: list[int]
    words: list[Word]

    def string(self, word: Word) -> str:
        """Returns the word as it stands in the text."""
        return self.text[word.start : word.end]


def is_word(text: str) -> bool:
    """Returns whether a string is nothing but letters of English."""
    return re.fullmatch("[A-Za-z]+", text) is not None


def find_words(tokenizer, texts: Sequence[str]) -> list[Sentence]:
    """Returns the sentences with their replaceable words: letters alone, known to the tokenizer, no stop words.

    Raises:
        UserError: the tokenizer does not cut words into pieces as BERT's does.
    """
    check_tokenizer(tokenizer)
    coded = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True)
    unknown = tokenizer.unk_token_id
    return [
        Sentence(text, list(one.ids), _words(text, one, unknown))
        for text, one in zip(texts, coded.encodings, strict=True)
    ]


def check_tokenizer(tokenizer) -> None:
    """Refuses a tokenizer whose whole words cannot be distinguished from its pieces.

    Raises:
        UserError: it is not a WordPiece tokenizer.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or type(backend.model).__name__ != "WordPiece":
        raise UserError(
            f"augment.model={tokenizer.name_or_path}: its tokenizer is a {type(tokenizer).__name__} and not"
            " WordPiece; allowed are models of BERT's kind (BERT, DistilBERT, MiniLM)"
        )


def _words(text: str, coded, unknown: int | None) -> list[Word]:
    """Returns the replaceable words of one text."""
    groups: dict[int, list[int]] = {}
    for position, number in enumerate(coded.word_ids):
        groups.setdefault(number, []).append(position)
    words = []
    for positions in groups.values():
        start, end = coded.offsets[positions[0]][0], coded.offsets[positions[-1]][1]
        known = all(coded.ids[position] != unknown for position in positions)
        if known and _is_replaceable(text, start, end):
            words.append(Word(start, end, positions[0], len(positions)))
    return words


def _is_replaceable(text: str, start: int, end: int) -> bool:
    string = text[start:end]
    if not is_word(string) or string.lower() in STOP_WORDS:
        return False
    return not unicodedata.combining(text[end : end + 1] or " ")  # an accent of its own belongs to the word
