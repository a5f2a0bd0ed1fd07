"""Reading a dataset of the model hub; the local cache counts as the hub."""

import errno
import math
from collections.abc import Mapping, Sequence

from keepfrac.errors import UserError
from keepfrac.storage.hub import hub_answers, in_cache
from keepfrac.tasks.rows import Rows


def hub_dataset(path: str, config: str | None, revision: str | None = None):
    """Returns the dataset's splits by name; None: neither the hub nor its cache on this machine has it.

    Args:
        path: dataset on the hub, owner/name.
        config: configuration of the dataset; None: its only one.
        revision: branch or commit; None: the main one.

    Raises:
        UserError: the hub answers, but the dataset cannot be loaded from it.
    """
    online = hub_answers()
    if not online and not in_cache(path, "dataset"):
        return None
    from datasets import load_dataset

    try:
        return load_dataset(path, config, **({"revision": revision} if revision else {}))
    except Exception as error:  # whatever its many back ends raise
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise UserError(f"{path}: the disk is full ({error})") from error
        if not online:  # a cache that holds another part of it
            return None
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(
            f"{path}: the model hub answers, but the dataset cannot be loaded ({first});"
            " try again, or set KEEPFRAC_HUB=offline to use the offline source"
        ) from error


def hub_rows(
    dataset,
    split: str,
    columns: Mapping[str, str],
    labels: Sequence[str] | None,
    where: str,
    limits: tuple[float, float] | None = None,
) -> Rows:
    """Returns the rows of one split.

    Args:
        dataset: splits by name.
        split: which.
        columns: what a column is for -> its name on the hub.
        labels: names of the classes; None: a regression.
        where: the dataset in words, for errors.
        limits: least and greatest score of a regression; None: any number.
    """
    if split not in dataset:
        raise UserError(f"{where} has no split {split!r}; there are {', '.join(dataset)}")
    part = dataset[split]
    missing = [column for column in columns.values() if column not in part.column_names]
    if missing:
        there = ", ".join(part.column_names)
        raise UserError(f"{where}, {split}: no column {missing[0]!r}; there are {there}")
    rows = Rows({purpose: part[column][:] for purpose, column in columns.items()})
    for number, label in enumerate(rows["label"]):
        fault = _score_fault(label, limits) if labels is None else _class_fault(label, len(labels))
        if fault:
            raise UserError(f"{where}, {split}, row {number}: {fault}")
    for purpose in set(columns) - {"label"}:
        if None in rows[purpose]:
            number = rows[purpose].index(None)
            raise UserError(f"{where}, {split}, row {number}: column {columns[purpose]!r} holds no text")
    return rows


def _class_fault(label, num_labels: int) -> str | None:
    if isinstance(label, int) and 0 <= label < num_labels:
        return None
    hidden = " (its labels are hidden)" if label == -1 else ""
    return f"label {label}{hidden}; allowed are 0 to {num_labels - 1}"


def _score_fault(score, limits: tuple[float, float] | None) -> str | None:
    low, high = limits or (-math.inf, math.inf)
    if isinstance(score, (int, float)) and math.isfinite(score) and low <= score <= high:
        return None
    return f"score {score}; allowed is a finite number from {low:g} to {high:g}"
