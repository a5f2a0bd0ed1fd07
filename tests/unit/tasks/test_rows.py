import numpy as np
import pytest

from keepfrac.tasks.rows import (
    Rows,
    cut_three,
    cut_validation,
    hash_bucket,
    hash_buckets,
    held_out_mask,
    stratified,
    subset,
)

TEXTS = [f"sentence number {i}" for i in range(20_000)]


def rows_of(texts, labels=None):
    return Rows({"text": list(texts), "label": list(labels or [i % 2 for i in range(len(texts))])})


def test_a_hash_bucket_depends_on_the_words_alone():
    assert hash_bucket("A  Red door ") == hash_bucket("a red DOOR") != hash_bucket("a red doors")
    assert all(0 <= hash_bucket(text) < 1 for text in [*TEXTS[:100], "", "\ud800"])


def test_hash_buckets_are_spread_evenly():
    counts, _ = np.histogram(hash_buckets(TEXTS), bins=10, range=(0, 1))
    assert abs(counts - 2000).max() < 200


def test_the_same_text_is_never_in_two_splits():
    texts = ["twin" if i % 50 == 0 else text for i, text in enumerate(TEXTS)]
    train, validation, test = (set(part["text"]) for part in cut_three(rows_of(texts)))
    assert not (train & validation or train & test or validation & test)


def test_a_split_does_not_depend_on_the_other_rows():
    _, most = cut_validation(rows_of(TEXTS[:2000]))
    _, fewer = cut_validation(rows_of(TEXTS[:1000]))
    assert set(fewer["text"]) == set(most["text"]) & set(TEXTS[:1000])


@pytest.mark.parametrize("most", [1, 100, 1999])
def test_the_most_is_kept_and_equal_buckets_stay_together(most):
    where = np.repeat(hash_buckets(TEXTS[:2000]), 3)
    mask = held_out_mask(where, 0.5, most)
    assert mask.sum() <= most
    assert most - mask.sum() < 3
    assert (mask.reshape(-1, 3).sum(1) % 3 == 0).all()


def test_validation_is_a_tenth():
    train, validation = cut_validation(rows_of(TEXTS))
    assert len(train) + len(validation) == len(TEXTS)
    assert abs(len(validation) / len(TEXTS) - 0.1) < 0.01


def test_a_subset_is_stratified_sorted_and_always_the_same():
    rows = rows_of(TEXTS[:1000], [0] * 700 + [1] * 300)
    part = subset(rows, 101)
    assert len(part) == 101
    assert sum(part["label"]) in {30, 31}
    assert part == subset(rows, 101)
    assert [TEXTS.index(text) for text in part["text"]] == sorted(TEXTS.index(text) for text in part["text"])


def test_a_subset_of_a_regression_covers_the_scores():
    scores = [i / 100 for i in range(1000)]
    part = subset(rows_of(TEXTS[:1000], scores), 100)
    assert np.histogram(part["label"], bins=10, range=(0, 10))[0].tolist() == [10] * 10


def test_subset_takes_all_where_all_is_asked():
    rows = rows_of(TEXTS[:10])
    assert subset(rows, None) is rows
    assert subset(rows, 10) is rows
    assert subset(rows, 11) is rows


def test_more_strata_than_rows():
    assert len(stratified(np.arange(50), 7, seed=0)) == 7


def test_a_digest_knows_order_and_borders():
    one, other = rows_of(["ab", "c"]), rows_of(["a", "bc"])
    assert one.digest() == rows_of(["ab", "c"]).digest()
    assert len({one.digest(), other.digest(), one.take([1, 0]).digest()}) == 3
