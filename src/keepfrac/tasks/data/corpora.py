"""Files of data-to-text corpora: meaning representations (MRs), and the reference texts that verbalise them.

Three layouts, each as csv, json, jsonl or parquet, from the original release or from the hub's parquet copy:

    e2e      one reference a row: mr, ref (hub: meaning_representation, human_reference)
    dart     tripleset [[subject, relation, object], ...]; annotations with text
    webnlg   modifiedtripleset and lexicalisations (hub: modified_triple_sets and lex; GEM: input and references)

Triples are written one after the other as `subject : relation : object | ...`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from keepfrac.errors import DataMissing, UserError
from keepfrac.tasks.data.files import read_csv_rows, read_text

SPLITS = {"train": ("train",), "validation": ("dev", "val"), "test": ("test",)}
SUFFIXES = (".csv", ".json", ".jsonl", ".parquet")


@dataclass(frozen=True)
class CorpusSplit:
    """What one split of a corpus holds.

    Args:
        pairs: (MR, reference) of each reference, in the order of the records.
        without_reference: the MR of each record that has no reference, or none that a checker let pass.
    """

    pairs: list[tuple[str, str]]
    without_reference: list[str]

    def by_mr(self) -> dict[str, list[str]]:
        """Returns the references of each MR, both in the order in which they first stand."""
        found: dict[str, list[str]] = {}
        for mr, reference in self.pairs:
            found.setdefault(mr, []).append(reference)
        return found


@dataclass(frozen=True)
class CorpusLayout:
    """One corpus as it is released.

    Args:
        files: split -> name of its file in the original release.
        parse: a record -> the MR and its references.
    """

    files: dict[str, str]
    parse: Callable[[Mapping], tuple[str, list[str]]]


def _of_e2e(record: Mapping) -> tuple[str, list[str]]:
    if "mr" in record:
        return record["mr"], [record["ref"]]
    return record["meaning_representation"], [record["human_reference"]]


def _of_dart(record: Mapping) -> tuple[str, list[str]]:
    return linearised(record["tripleset"]), _texts(record["annotations"], "text")


def _of_webnlg(record: Mapping) -> tuple[str, list[str]]:
    if "modifiedtripleset" in record:
        triples = [(t["subject"], t["property"], t["object"]) for t in record["modifiedtripleset"]]
        return linearised(triples), _texts(record["lexicalisations"], "lex")
    if "modified_triple_sets" in record:
        (first, *_) = record["modified_triple_sets"]["mtriple_set"]
        return linearised(_split(first)), _texts(record["lex"], "text")
    return linearised(_split(record["input"])), list(record["references"]) or [record["target"]]


LAYOUTS = {
    "e2e": CorpusLayout({"train": "trainset.csv", "validation": "devset.csv", "test": "testset_w_refs.csv"}, _of_e2e),
    "dart": CorpusLayout({split: f"dart-v1.1.1-full-{word[0]}.json" for split, word in SPLITS.items()}, _of_dart),
    "webnlg": CorpusLayout({split: f"{word[0]}.json" for split, word in SPLITS.items()}, _of_webnlg),
}


def linearised(triples: Iterable[Iterable[str]]) -> str:
    """Returns triples as one line: `subject : relation : object | ...`."""
    return " | ".join(" : ".join(str(part).strip() for part in triple) for triple in triples)


def _split(lines: Iterable[str]) -> list[list[str]]:
    """Returns the triples of `subject | relation | object` lines."""
    return [line.split(" | ") for line in lines]


def _texts(annotations, key: str) -> list[str]:
    """Returns the texts of a list of records, or of a record of lists; those that a checker refused are left out."""
    if isinstance(annotations, Mapping):
        columns = [annotations[key], annotations.get("comment") or ["good"] * len(annotations[key])]
        return [text for text, comment in zip(*columns, strict=True) if comment in ("good", "")]
    return [one[key] for one in annotations if one.get("comment", "good") in ("good", "")]


def read_folder(folder: Path, layout: CorpusLayout) -> dict[str, CorpusSplit]:
    """Reads the three splits of a corpus from a folder.

    Raises:
        DataMissing: a split has no file there; the message has the names that are looked for.
    """
    return {split: _read_split(files_of(folder, layout, split), layout) for split in SPLITS}


def files_of(folder: Path, layout: CorpusLayout, split: str) -> list[Path]:
    """Returns the files of a split: the original release's, else those whose name holds the split's."""
    own = folder / layout.files[split]
    if own.is_file():
        return [own]
    word = re.compile(rf"(?:^|[^a-z])(?:{'|'.join(SPLITS[split])})", re.IGNORECASE)
    for suffix in SUFFIXES:
        files = (path for path in folder.rglob(f"*{suffix}") if path.is_file())  # no pipe, no folder
        named = sorted(path for path in files if word.search(str(path.relative_to(folder))))
        if named:
            return named
    raise DataMissing(
        f"{folder}: no file of the {split} split; wanted is {layout.files[split]}, or a csv, json, jsonl or parquet"
        f" file with {' or '.join(SPLITS[split])} in its name"
    )


def _read_split(paths: list[Path], layout: CorpusLayout) -> CorpusSplit:
    parts = [read_split(_records(path), layout, str(path)) for path in paths]
    return CorpusSplit(
        [pair for part in parts for pair in part.pairs], [mr for part in parts for mr in part.without_reference]
    )


def read_split(records: Iterable[Mapping], layout: CorpusLayout, where: str) -> CorpusSplit:
    """Reads the records of one split.

    Args:
        records: as they were released.
        layout: of the corpus.
        where: what the records were read from, for errors.

    Raises:
        UserError: a record lacks a column or holds no text; the message has its number.
    """
    pairs, without_reference = [], []
    for number, record in enumerate(records, start=1):
        try:
            mr, references = layout.parse(record)
        except (KeyError, TypeError, ValueError) as error:
            there = ", ".join(map(str, record)) if isinstance(record, Mapping) else type(record).__name__
            raise UserError(f"{where}, record {number}: {error!r}; there is {there}") from None
        if not all(isinstance(one, str) and one.strip() for one in [mr, *references]):
            raise UserError(f"{where}, record {number}: holds no text where a text is needed")
        if not references:
            without_reference.append(mr.strip())
        pairs += [(mr.strip(), " ".join(one.split())) for one in references]
    return CorpusSplit(pairs, without_reference)


def _records(path: Path) -> Iterable[Mapping]:
    if path.suffix == ".parquet":
        return _of_parquet(path)
    if path.suffix != ".json":
        return [record for _, record in read_csv_rows(path)]
    try:
        content = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from None
    entries = content["entries"] if isinstance(content, dict) and "entries" in content else content
    if not isinstance(entries, list):
        raise UserError(f"{path}: allowed is a list of records, or an object with `entries`")
    return [one for entry in entries for one in _unnumbered(entry)]


def _unnumbered(entry) -> list:
    """Returns the records of WebNLG's {"17": {...}}, or the entry itself."""
    numbered = isinstance(entry, dict) and entry and all(str(key).isdigit() for key in entry)
    return list(entry.values()) if numbered else [entry]


def _of_parquet(path: Path) -> list[Mapping]:
    import pandas

    try:
        return json.loads(pandas.read_parquet(path).to_json(orient="records"))  # lists in lists, not arrays
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as parquet ({error})") from error
