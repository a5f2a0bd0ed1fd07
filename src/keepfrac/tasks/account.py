"""A short account of the rows of a run: what stands in its results, and in its first lines."""

from collections import Counter
from collections.abc import Mapping
from itertools import chain

from keepfrac.tasks.loading import Encoded
from keepfrac.tasks.rows import Rows, Splits

FEW_ROWS = 100
"""A score on fewer rows moves by more than a point with one of them."""
_MOST_CLASSES = 8  # named in a line
_REMARKS = {
    "labels_trimmed": "labels that had blanks around them",
    "texts_in_marks": "texts between quotation marks, which are kept",
    "left_out": "rows left out",
}


def account(splits: Splits, encoded: Mapping[str, Encoded]) -> dict[str, dict]:
    """Returns what each set holds, by its name.

    That is `rows`; `classes` (label -> rows) or `scores` (least, mean, greatest); `without_text`, rows with a text of
    blanks alone; `longest_text` in characters; `shared` (set -> rows whose texts stand in that set too, of the sets
    before it, case and spacing aside); and once they are encoded `longest`, in tokens after cutting, and `truncated`,
    the share that was cut.

    Args:
        splits: the rows.
        encoded: the encoded rows of those sets that are.
    """
    found: dict[str, dict] = {}
    earlier: dict[str, set] = {}
    for name, rows in splits.named().items():
        texts = list(rows.texts())
        found[name] = _of_texts(texts) | _of_labels(rows, splits.labels)
        words = list(rows.words())
        shared = {other: sum(row in seen for row in words) for other, seen in earlier.items()}
        if any(shared.values()):
            found[name]["shared"] = {other: number for other, number in shared.items() if number}
        if name in encoded:
            found[name] |= _of_tokens(encoded[name])
        earlier[name] = set(words)
    return found


def _of_texts(texts: list[tuple[str, ...]]) -> dict:
    without = sum(not all(text.strip() for text in row) for row in texts)
    longest = max((sum(map(len, row)) for row in texts), default=0)
    return {"rows": len(texts), **({"without_text": without} if without else {}), "longest_text": longest}


def _of_labels(rows: Rows, labels: tuple[str, ...] | None) -> dict:
    if "label" not in rows:
        return {}
    values = rows["label"]
    if labels is None:
        return {"scores": [min(values), sum(values) / len(values), max(values)]} if values else {}
    several = bool(values) and isinstance(values[0], list)
    counts = Counter(chain.from_iterable(values) if several else values)
    none = {"without_label": sum(not one for one in values)} if several else {}
    return {"classes": {label: counts[number] for number, label in enumerate(labels)}, **none}


def _of_tokens(encoded: Encoded) -> dict:
    if not len(encoded):
        return {}
    return {"longest": int(max(encoded.lengths)), "truncated": round(encoded.truncated / len(encoded), 6)}


def lines(described: Mapping) -> list[str]:
    """Returns a line for each set, and one for whatever else is odd about the data.

    Args:
        described: what `Task.describe` returns.
    """
    found = [f"{name}: {'; '.join(_parts(one, name))}" for name, one in described["account"].items()]
    for key, words in _REMARKS.items():
        if numbers := described.get(key):
            found.append(f"{words}: " + ", ".join(f"{number} in {file}" for file, number in numbers.items()))
    if alike := described.get("labels_alike"):
        found.append("labels that differ in upper and lower case alone: " + ", ".join(alike))
    if positive := described.get("positive"):
        found.append(f"F1, precision and recall are those of the class {positive!r}")
    return found


def _parts(one: Mapping, name: str) -> list[str]:
    """The words on one set."""
    rows = one["rows"]
    parts = [f"{rows:,} rows{_labels_in_words(one)}"]
    if without := one.get("without_text"):
        parts.append(f"{without:,} without text")
    parts.append(f"longest {one['longest_text']:,} characters" + _tokens_in_words(one))
    parts += [f"{number:,} stand in {other} too" for other, number in one.get("shared", {}).items()]
    if name != "train" and rows < FEW_ROWS:
        parts.append(f"few rows: one is {100 / rows:.1f} % of them")
    return parts


def _labels_in_words(one: Mapping) -> str:
    if scores := one.get("scores"):
        return f" (scores {scores[0]:g} to {scores[2]:g}, mean {scores[1]:.4g})"
    classes = one.get("classes") or {}
    if len(classes) > _MOST_CLASSES:
        words = f"{len(classes)} classes of {min(classes.values()):,} to {max(classes.values()):,}"
    else:
        words = ", ".join(f"{label}: {number:,}" for label, number in classes.items())
    without = [f"no label: {one['without_label']:,}"] if one.get("without_label") else []
    return f" ({', '.join([words, *without])})" if words else ""


def _tokens_in_words(one: Mapping) -> str:
    if "longest" not in one:
        return ""
    return f", {one['longest']:,} tokens, {100 * one['truncated']:.1f} % of the rows cut"
