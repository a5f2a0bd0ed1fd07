"""Files: whole or not at all; one holder of a folder's lock."""

import os

import pytest

from keepfrac.errors import Held
from keepfrac.storage.cache import cache_folder
from keepfrac.storage.files import is_locked, locked, replacing, write_atomically


def test_a_file_and_a_folder_take_their_place_at_the_end(tmp_path):
    with replacing(tmp_path / "model") as new:
        new.mkdir()
        (new / "weights").write_text("1")
        assert not (tmp_path / "model").exists()
    write_atomically(tmp_path / "deep" / "text", "é")
    assert (tmp_path / "model" / "weights").read_text() == "1"
    assert (tmp_path / "deep" / "text").read_text(encoding="utf-8") == "é"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "model"]


def test_an_error_leaves_what_was_there_and_nothing_else(tmp_path):
    write_atomically(tmp_path / "a", "former")
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "a") as new:
        new.with_name("other").write_text("half")
    assert (tmp_path / "a").read_text() == "former" and [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_is_put_in_place_is_on_the_disk(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(os, "fsync", flushed.append)
    write_atomically(tmp_path / "a", "text")
    assert len(flushed) == 1


def test_a_lock_has_one_holder(tmp_path):
    assert not is_locked(tmp_path)
    with locked(tmp_path / "cell"):
        assert is_locked(tmp_path / "cell")
        with pytest.raises(Held, match="another process"), locked(tmp_path / "cell"):
            pass
    assert not is_locked(tmp_path / "cell")


def test_the_cache_is_where_the_system_says(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("tokens") == tmp_path / "keepfrac" / "tokens"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder("tokens") == tmp_path / ".cache" / "keepfrac" / "tokens"
