"""Rows of data, and how they are divided: by a hash of the text, so that no split ever depends on a seed."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations

import numpy as np

from keepfrac.errors import UserError

VALIDATION_FRAC = 0.1
VALIDATION_MOST = 5_000
SUBSET_SEED = 20_240_607  # fixed: the rows of `task.rows` are the same for every seed of a run
REGRESSION_BINS = 10
TEXTS = ("text", "text_pair")


@dataclass(frozen=True)
class Rows:
    """Columns of equal length.

    Args:
        columns: name -> values; texts are strings, class labels integers, scores floats.
    """

    columns: dict[str, list]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), []))

    def __getitem__(self, column: str) -> list:
        return self.columns[column]

    def __contains__(self, column: str) -> bool:
        return column in self.columns

    def take(self, indices: Sequence[int] | np.ndarray) -> "Rows":
        """Returns the rows at `indices`, in that order."""
        return Rows({name: [values[i] for i in indices] for name, values in self.columns.items()})

    def texts(self) -> Iterator[tuple[str, ...]]:
        """Yields the text of each row, or its two."""
        return zip(*(self.columns[name] for name in TEXTS if name in self), strict=True)

    def words(self) -> Iterator[tuple[str, ...]]:
        """Yields the texts of each row, as far as case and spacing do not count."""
        return (tuple(map(words_of, texts)) for texts in self.texts())

    def digest(self) -> str:
        """Returns the sha256 of the content, order included."""
        total = hashlib.sha256()
        for name, values in sorted(self.columns.items()):
            total.update(json.dumps([name, values], ensure_ascii=False).encode("utf-8", "surrogatepass"))
        return total.hexdigest()


@dataclass(frozen=True)
class Splits:
    """The rows of a task.

    Args:
        train: rows that are trained on.
        validation: rows that choose the best checkpoint.
        test: rows that are reported.
        source: where they were read, in one line.
        how: how the splits were made, in one sentence.
        labels: names of the classes in the order of their numbers; None: a regression.
        extra: further labelled test sets by name.
        notes: what else a reader of the result has to know.
    """

    train: Rows
    validation: Rows
    test: Rows
    source: str
    how: str
    labels: tuple[str, ...] | None
    extra: dict[str, Rows] = field(default_factory=dict)
    notes: dict = field(default_factory=dict)

    def named(self) -> dict[str, Rows]:
        """Returns all sets by name: train, val, test and the extra ones."""
        return {"train": self.train, "val": self.validation, "test": self.test, **self.extra}

    def texts(self, split: str) -> list[str]:
        """Returns the texts of a set, each of a pair by itself."""
        rows = self.named()[split]
        return [text for column in TEXTS if column in rows for text in rows[column]]

    def fingerprint(self) -> str:
        """Returns a sha256 of the content: which source it came from does not matter."""
        parts = {name: rows.digest() for name, rows in self.named().items()}
        return hashlib.sha256(json.dumps([parts, self.labels], sort_keys=True).encode()).hexdigest()


def words_of(text: str) -> str:
    """Returns the words of a text: equal for two that differ in case or spacing alone."""
    return " ".join(text.lower().split())


def hash_bucket(text: str) -> float:
    """Returns a number in [0, 1) that depends on the words of `text` alone, not on case or spacing."""
    first = hashlib.sha256(words_of(text).encode("utf-8", "surrogatepass")).digest()[:8]
    return (int.from_bytes(first, "big") >> 11) / 2**53


def hash_buckets(texts: Sequence[str]) -> np.ndarray:
    """Returns the hash bucket of each text, (rows,) float64."""
    return np.fromiter((hash_bucket(text) for text in texts), dtype=np.float64, count=len(texts))


def held_out_mask(buckets: np.ndarray, frac: float, most: int | None = None) -> np.ndarray:
    """Returns a mask of the rows whose hash bucket is below `frac`; True: cut off.

    With more than `most` such rows the limit falls until there are not; rows of one bucket stay together.
    """
    if most is not None and int((buckets < frac).sum()) > most:
        frac = float(np.sort(buckets)[most])
    return buckets < frac


def cut_validation(rows: Rows, column: str = "text") -> tuple[Rows, Rows]:
    """Returns (train, validation): validation is 10 % of the rows by the hash of `column`, 5,000 at most."""
    mask = held_out_mask(hash_buckets(rows[column]), VALIDATION_FRAC, VALIDATION_MOST)
    return rows.take(np.flatnonzero(~mask)), rows.take(np.flatnonzero(mask))


def cut_three(rows: Rows, column: str = "text") -> tuple[Rows, Rows, Rows]:
    """Returns (train, validation, test), 80 / 10 / 10 by the hash of `column`."""
    buckets = hash_buckets(rows[column])
    test, validation = buckets < 0.1, (buckets >= 0.1) & (buckets < 0.2)
    return tuple(rows.take(np.flatnonzero(mask)) for mask in (~test & ~validation, validation, test))  # type: ignore[return-value]


def refuse_copies(rows: Mapping[str, Rows], names: Mapping[str, str]) -> None:
    """Refuses sets of which one holds nothing but rows of another, texts and labels alike.

    Args:
        rows: by set, before some of them are left out.
        names: what the user calls each set.

    Raises:
        UserError: names the two.
    """
    contents = {
        name: set(zip(one.words(), map(str, one.columns.get("label", [""] * len(one))), strict=True))
        for name, one in rows.items()
    }
    for one, other in permutations(reversed(contents), 2):
        if contents[one] and contents[one] <= contents[other]:
            raise UserError(
                f"{names[one]}: all {len(rows[one])} rows stand in {names[other]} too, so that a score would mean"
                " nothing; give other rows, or no file of validation or test: where there is none, a part of train is"
                " cut off"
            )


def completed(
    rows: dict[str, Rows], names: Mapping[str, str] | None, column: str = "text"
) -> tuple[Rows, Rows, Rows, str]:
    """Returns train, validation, test, and how the missing ones were made: by a hash of `column`.

    Args:
        rows: of the sets that were read.
        names: what the user calls each set; None: they are of the hub, as they were published.
        column: rows that are equal in it stay together.

    Raises:
        UserError: a set that was read is a part of another one.
    """
    if names is not None:
        refuse_copies(rows, names)
    train, validation, test = rows["train"], rows.get("validation"), rows.get("test")
    share = "10 % of train (5,000 rows at most) by a hash of the text"
    if validation is None and test is None:
        how = "validation and test are 10 % of train each, by a hash of the text"
        return *cut_three(train, column), how
    if validation is None:
        train, validation = cut_validation(train, column)
        return train, validation, rows["test"], f"test has its own file; validation is {share}"
    if test is None:
        train, test = cut_validation(train, column)
        return train, validation, test, f"validation has its own file; test is {share}"
    return train, validation, test, "each has its own file"


def subset(rows: Rows, wanted: int | None, column: str = "label") -> Rows:
    """Returns `wanted` of the rows, stratified by `column` (scores: by tenths), in their first order; None: all."""
    if wanted is None or wanted >= len(rows):
        return rows
    return rows.take(stratified(_strata(rows[column]), wanted, SUBSET_SEED))


def stratified(strata: np.ndarray, wanted: int, seed: int) -> np.ndarray:
    """Returns `wanted` sorted indices that hold each stratum in its share (largest remainders)."""
    order = np.random.default_rng(seed).permutation(len(strata))
    kinds, counts = np.unique(strata, return_counts=True)
    shares = counts * wanted / len(strata)
    quota = np.floor(shares).astype(int)
    for i in np.argsort(-(shares - quota), kind="stable")[: wanted - quota.sum()]:
        quota[i] += 1
    chosen = [order[strata[order] == kind][:number] for kind, number in zip(kinds, quota, strict=True)]
    return np.sort(np.concatenate(chosen))


def _strata(values: list) -> np.ndarray:
    """Returns the stratum of each row: the class, or the tenth of a score; one stratum for anything else."""
    if not values or not isinstance(values[0], (int, float)):
        return np.zeros(len(values), dtype=int)
    if isinstance(values[0], int):
        return np.asarray(values)
    ranks = np.argsort(np.argsort(values, kind="stable"), kind="stable")
    return ranks * REGRESSION_BINS // len(values)
