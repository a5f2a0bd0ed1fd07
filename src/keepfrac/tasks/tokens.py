"""Texts to token ids: once per content, tokenizer and length, kept on disk.

An entry of the cache is a folder named by the sha256 of all it depends on. It is written under a temporary name, then
renamed, so that jobs that start together may all write it. It may be deleted at any time.
"""

import hashlib
import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from keepfrac.storage.cache import cache_folder
from keepfrac.storage.files import replacing
from keepfrac.tasks.rows import TEXTS, Rows

log = logging.getLogger(__name__)

VERSION = 1
CHUNK = 8_192


@dataclass(frozen=True)
class Tokens:
    """Token ids of many rows, concatenated.

    Args:
        ids: (tokens,) int32.
        types: segment of each token, (tokens,) int8; None: the tokenizer knows no segments.
        starts: where each row begins, and the end: (rows + 1,) int64.
        truncated: how many rows were longer than allowed.
    """

    ids: np.ndarray
    types: np.ndarray | None
    starts: np.ndarray
    truncated: int

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, (rows,) int64."""
        return np.diff(self.starts)

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Returns token ids and segment ids of one row, views."""
        part = slice(int(self.starts[index]), int(self.starts[index + 1]))
        return self.ids[part], None if self.types is None else self.types[part]


def joined(first: Tokens, second: Tokens) -> Tokens:
    """Returns the rows of both, the first ones before the second ones; both know segments, or neither does."""
    return Tokens(
        ids=np.concatenate([first.ids, second.ids]),
        types=None if first.types is None else np.concatenate([first.types, second.types]),
        starts=np.concatenate([first.starts, second.starts[1:] + first.starts[-1]]),
        truncated=first.truncated + second.truncated,
    )


@dataclass(frozen=True)
class TokenRows:
    """Rows of tokens, with something beside each; a subclass gives the rows.

    Args:
        tokens: of all rows.
    """

    tokens: Tokens

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, (rows,)."""
        return self.tokens.lengths

    @property
    def truncated(self) -> int:
        """How many rows were cut."""
        return self.tokens.truncated

    def __len__(self) -> int:
        return len(self.tokens)


def tokenizer_digest(tokenizer) -> str:
    """Returns a sha256 of what decides a tokenizer's output: its state, but for truncation and padding."""
    parts: list = [type(tokenizer).__name__, tokenizer.model_input_names, getattr(tokenizer, "truncation_side", None)]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        parts += [sorted(tokenizer.get_vocab().items()), repr(tokenizer)]
    else:
        state = json.loads(backend.to_str())
        parts.append({key: value for key, value in state.items() if key not in {"truncation", "padding"}})
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode("utf-8", "surrogatepass")).hexdigest()


def tokenise(tokenizer, rows: Rows, max_length: int) -> Tokens:
    """Returns the tokens of `text`, or of `text` and `text_pair`, cut to `max_length`."""
    texts, pairs = rows["text"], rows.columns.get("text_pair")
    with_types = "token_type_ids" in tokenizer.model_input_names
    ids, types, lengths, truncated = [], [], [], 0
    for start in range(0, len(texts), CHUNK):
        part = slice(start, start + CHUNK)
        coded = tokenizer(
            texts[part],
            pairs[part] if pairs is not None else None,
            truncation=True,
            max_length=max_length,
            return_attention_mask=False,
            return_token_type_ids=with_types,
        )
        lengths += [len(row) for row in coded["input_ids"]]
        ids.append(np.fromiter((token for row in coded["input_ids"] for token in row), dtype=np.int32))
        if with_types:
            types.append(np.fromiter((kind for row in coded["token_type_ids"] for kind in row), dtype=np.int8))
        truncated += _count_truncated(coded, max_length)
    return Tokens(
        ids=np.concatenate(ids) if ids else np.zeros(0, np.int32),
        types=(np.concatenate(types) if types else np.zeros(0, np.int8)) if with_types else None,
        starts=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64),
        truncated=truncated,
    )


def _count_truncated(coded, max_length: int) -> int:
    """Counts rows that lost tokens; without a fast tokenizer, rows that fill the length."""
    if coded.encodings is not None:
        return sum(bool(encoding.overflowing) for encoding in coded.encodings)
    return sum(len(row) >= max_length for row in coded["input_ids"])


def cached_tokens(tokenizer, digest: str, rows: Rows, max_length: int) -> Tokens:
    """Returns `tokenise(...)`, from the disk where the same was done before; `digest` is the tokenizer's."""
    texts = Rows({name: rows[name] for name in TEXTS if name in rows})
    key = json.dumps([VERSION, texts.digest(), digest, max_length, _library_version()])
    folder = cache_folder("tokens") / hashlib.sha256(key.encode()).hexdigest()
    found = _load(folder)
    if found is not None:
        return found
    tokens = tokenise(tokenizer, rows, max_length)
    _save(tokens, folder)
    return tokens


def _library_version() -> str:
    import tokenizers

    return tokenizers.__version__


def _load(folder: Path) -> Tokens | None:
    """Returns an entry of the cache; None where there is none, or one that cannot be read."""
    try:
        facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in facts["arrays"]}
        return Tokens(arrays["ids"], arrays.get("types"), np.array(arrays["starts"]), facts["truncated"])
    except (OSError, ValueError, KeyError, EOFError):
        return None


def _save(tokens: Tokens, folder: Path) -> None:
    """Writes an entry; a disk that is full or read-only costs the cache, not the run."""
    arrays = {"ids": tokens.ids, "types": tokens.types, "starts": tokens.starts}
    present = {name: array for name, array in arrays.items() if array is not None}
    facts = {"arrays": list(present), "rows": len(tokens), "truncated": tokens.truncated}
    try:
        with replacing(folder) as new:
            new.mkdir()
            for name, array in present.items():
                np.save(new / f"{name}.npy", array)
            (new / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
            if _load(folder) is None:
                shutil.rmtree(folder, ignore_errors=True)  # an entry that cannot be read
    except OSError as error:
        if _load(folder) is None:  # else another job was first
            log.warning("tokens are not cached: %s", error)
