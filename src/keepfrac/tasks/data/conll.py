"""Sentences of words with a tag each: CoNLL columns or jsonl; every scheme is brought to BIO.

A tag is O, or a prefix and a type. B- and S- (BILOU: U-) begin an entity, I-, E- and L- go on with one. What goes on
where nothing of its type has begun begins an entity itself, as the script `conlleval` of CoNLL-2000 reads it
(Tjong Kim Sang and Buchholz 2000); such tags become B- and are counted.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keepfrac.errors import UserError
from keepfrac.tasks.data.files import read_csv_rows, read_text, split_lines

OUTSIDE = "O"
BEGINS, GOES_ON = "BSU", "IEL"
TAGS = ("tags", "ner_tags", "labels")
"""Names that the tags of a jsonl row may have; its words are `tokens`, or `words`."""


@dataclass(frozen=True)
class Sentence:
    """One sentence.

    Args:
        words: one string each.
        tags: one BIO tag each.
        where: the file and the line it begins in, for errors.
    """

    words: list[str]
    tags: list[str]
    where: str


@dataclass(frozen=True)
class Tagged:
    """The sentences of a file.

    Args:
        sentences: in the order of the file, empty ones left out.
        repaired: how many tags went on with an entity that had not begun.
    """

    sentences: list[Sentence]
    repaired: int

    def tags(self) -> set[str]:
        """Returns the tags that occur."""
        return {tag for sentence in self.sentences for tag in sentence.tags}


def read_tagged(path: Path) -> Tagged:
    """Reads a file of tagged sentences.

    Args:
        path: CoNLL columns (first the word, last the tag; between them tabs, else white space; an empty line ends a
            sentence; lines that begin with -DOCSTART- are left out), or .jsonl with `tokens` and one of TAGS.

    Raises:
        UserError: the file cannot be read, or a line holds no tag of a scheme; file and line are named.
    """
    found = list(_of_jsonl(path) if path.suffix == ".jsonl" else _of_columns(path))
    if not found:
        raise UserError(f"{path}: holds no sentence")
    sentences, repaired = [], 0
    for words, tags, lines in found:
        plain, mended = to_bio(tags, [f"{path}, line {line}" for line in lines])
        sentences.append(Sentence(words, plain, f"{path}, line {lines[0]}"))
        repaired += mended
    return Tagged(sentences, repaired)


def to_bio(tags: Sequence[str], where: Sequence[str]) -> tuple[list[str], int]:
    """Returns the tags of one sentence in BIO, and how many went on with an entity that had not begun.

    Args:
        tags: of BIO (IOB1 and IOB2), IOBES or BILOU.
        where: what to name in the error of each tag.

    Raises:
        UserError: a tag is of none of these schemes.
    """
    plain: list[str] = []
    repaired, before = 0, None
    for tag, place in zip(tags, where, strict=True):
        prefix, _, kind = tag.partition("-")
        if tag == OUTSIDE:
            before = None
            plain.append(OUTSIDE)
            continue
        if not kind or prefix not in (*BEGINS, *GOES_ON):
            raise UserError(f"{place}: tag {tag!r}; allowed are O, and B-, I- (E-, S-; L-, U-) with a type: B-person")
        goes_on = prefix in GOES_ON and before == kind
        repaired += prefix in GOES_ON and not goes_on
        plain.append(f"I-{kind}" if goes_on else f"B-{kind}")
        before = None if prefix in "SELU" else kind
    return plain, repaired


def names_of(tags: set[str]) -> tuple[str, ...]:
    """Returns the classes for tags that occur: O, then B- and I- of each type, sorted by type."""
    kinds = sorted({tag.partition("-")[2] for tag in tags if tag != OUTSIDE})
    return OUTSIDE, *(f"{prefix}-{kind}" for kind in kinds for prefix in "BI")


def _of_columns(path: Path) -> Iterator[tuple[list[str], list[str], list[int]]]:
    """Yields words, tags and lines of each sentence."""
    words: list[str] = []
    tags: list[str] = []
    lines: list[int] = []
    for number, line in enumerate([*split_lines(read_text(path)), ""], start=1):
        if not line.strip() or line.startswith("-DOCSTART-"):
            if words:
                yield words, tags, lines
            words, tags, lines = [], [], []
            continue
        columns = line.rstrip().split("\t") if "\t" in line.rstrip() else line.split()
        if len(columns) < 2 or not columns[0].strip():
            raise UserError(
                f"{path}, line {number}: {line.strip()!r}; wanted are a word and its tag, with a tab between"
            )
        words.append(columns[0].strip())
        tags.append(columns[-1].strip())
        lines.append(number)


def _of_jsonl(path: Path) -> Iterator[tuple[list[str], list[str], list[int]]]:
    for number, record in read_csv_rows(path):
        words: Any = record.get("tokens", record.get("words"))
        tags: Any = next((record[name] for name in TAGS if name in record), None)
        for name, values in (("tokens", words), (TAGS[0], tags)):
            if not isinstance(values, list) or not all(isinstance(one, str) for one in values):
                raise UserError(
                    f"{path}, line {number}: {name} holds {json.dumps(values)[:60]}; allowed is a list of words"
                )
        if len(words) != len(tags):
            raise UserError(f"{path}, line {number}: {len(words)} tokens and {len(tags)} tags; allowed are as many")
        if words:
            yield words, tags, [number] * len(words)
