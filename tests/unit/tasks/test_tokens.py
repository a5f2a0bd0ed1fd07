import logging

import numpy as np
import pytest

from keepfrac.storage.cache import cache_folder
from keepfrac.tasks import tokens
from keepfrac.tasks.rows import Rows
from tests.unit.tasks.conftest import WORDS, word_tokenizer

ROWS = Rows({"text": ["the red door", "a", "", "two apples " * 20], "text_pair": ["a map", "it", "the box", "one"]})


def same(one, other):
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("ids", "types", "starts")) and (
        one.truncated == other.truncated
    )


def cached(tokenizer, rows=ROWS, length=16):
    return tokens.cached_tokens(tokenizer, tokens.tokenizer_digest(tokenizer), rows, length)


@pytest.mark.parametrize("columns", [("text",), ("text", "text_pair")])
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_rows_are_what_the_tokenizer_gives_one_by_one(tokenizer, monkeypatch, columns, chunk):
    monkeypatch.setattr(tokens, "CHUNK", chunk)
    rows = Rows({name: ROWS[name] for name in columns})
    found = tokens.tokenise(tokenizer, rows, 16)
    for i in range(len(ROWS)):
        alone = tokenizer(*[rows[name][i] for name in columns], truncation=True, max_length=16)
        ids, types = found.row(i)
        assert ids.tolist() == alone["input_ids"]
        assert types.tolist() == alone["token_type_ids"]
    assert found.truncated == 1
    assert found.lengths.tolist() == np.diff(found.starts).tolist()


def test_a_tokenizer_without_segments_gives_none():
    found = tokens.tokenise(word_tokenizer(inputs=("input_ids", "attention_mask")), ROWS, 16)
    assert found.types is None
    assert found.row(0)[1] is None


def test_the_second_time_comes_from_the_disk(tokenizer, monkeypatch):
    first = cached(tokenizer)
    monkeypatch.setattr(tokens, "tokenise", lambda *args: pytest.fail("tokenised again"))
    assert same(cached(tokenizer), first)
    assert same(cached(word_tokenizer()), first)


def test_texts_tokenizer_and_length_are_part_of_the_key(tokenizer):
    cached(tokenizer)
    cached(tokenizer, length=15)
    cached(tokenizer, rows=ROWS.take([0, 1]))
    cached(word_tokenizer(WORDS[:-1]))
    assert len(list(cache_folder("tokens").iterdir())) == 4


def test_a_digest_ignores_padding_and_truncation(tokenizer):
    before = tokens.tokenizer_digest(tokenizer)
    tokenizer(["a", "the red door"], padding=True, truncation=True, max_length=4)
    assert tokens.tokenizer_digest(tokenizer) == before
    tokenizer.add_tokens(["new"])
    assert tokens.tokenizer_digest(tokenizer) != before


@pytest.mark.parametrize("damage", ["facts.json", "ids.npy"])
def test_a_damaged_entry_is_made_anew(tokenizer, damage):
    first = cached(tokenizer)
    (entry,) = cache_folder("tokens").iterdir()
    (entry / damage).write_bytes(b"")
    assert same(cached(tokenizer), first)
    assert (entry / damage).stat().st_size > 0


def test_without_a_place_for_the_cache_it_still_works(tokenizer, monkeypatch, tmp_path, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        assert len(cached(tokenizer)) == 4
    assert "tokens are not cached" in caplog.text


def test_nothing_half_written_stays(tokenizer):
    cached(tokenizer)
    assert not [entry for entry in cache_folder("tokens").iterdir() if entry.name.startswith(".")]
