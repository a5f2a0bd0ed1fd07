import numpy as np
import pytest

from keepfrac.errors import UserError
from keepfrac.tasks.masking import IGNORED, Masking, masking_of
from tests.unit.tasks.conftest import word_tokenizer

SIZE, MASK = 50, 4
SPECIAL = np.arange(SIZE) < 5


def masking(frac=0.15, span=1, continues=()):
    table = np.zeros(SIZE, dtype=bool)
    table[list(continues)] = True
    return Masking(frac, span, MASK, SPECIAL, table)


def row(length, seed=0):
    return np.array([2, *np.random.default_rng(seed).integers(5, SIZE, length), 3])


@pytest.mark.parametrize(("length", "wanted"), [(40, 6), (1, 1), (3, 1), (100, 15)])
def test_as_many_tokens_as_the_share_says_and_one_at_least(length, wanted):
    seen, labels = masking()(row(length), np.random.default_rng(1))
    assert (labels != IGNORED).sum() == wanted
    hidden = labels != IGNORED
    assert (labels[hidden] == row(length)[hidden]).all()
    assert (seen[~hidden] == row(length)[~hidden]).all()


def test_special_tokens_are_neither_chosen_nor_put_in():
    for seed in range(50):
        seen, labels = masking(0.9)(row(30, seed), np.random.default_rng(seed))
        assert labels[0] == labels[-1] == IGNORED and seen[0] == 2 and seen[-1] == 3
        assert not set(seen[1:-1]) & {0, 1, 2, 3}


def test_eighty_ten_ten():
    kinds = np.zeros(3)
    for seed in range(400):
        ids = row(100, seed)
        seen, labels = masking()(ids, np.random.default_rng(seed))
        hidden = labels != IGNORED
        masked, same = seen[hidden] == MASK, seen[hidden] == ids[hidden]
        kinds += [masked.sum(), (~masked & ~same).sum(), same.sum()]
    assert kinds / kinds.sum() == pytest.approx([0.8, 0.1, 0.1], abs=0.015)


def test_a_run_of_three_words_is_drawn_as_often_as_the_ngrams_say():
    """Three of a hundred tokens: one run of three where its length is, with probability (1/3) / (1 + 1/2 + 1/3)."""
    shares = {}
    for span in (1, 3):
        whole = 0
        for seed in range(500):
            _, labels = masking(0.03, span)(row(100), np.random.default_rng(seed))
            whole += np.ptp(np.flatnonzero(labels != IGNORED)) == 2
        shares[span] = whole / 500
    assert shares[1] < 0.02
    assert shares[3] == pytest.approx(2 / 11, abs=0.06)


def test_words_go_whole():
    pieces = range(30, SIZE)
    ids = np.array([2, 10, 30, 31, 11, 12, 32, 13, 14, 33, 34, 35, 15, 3])
    words = [[1, 2, 3], [4], [5, 6], [7], [8, 9, 10, 11], [12]]
    chosen = set()
    for seed in range(300):
        _, labels = masking(0.4, continues=pieces)(ids, np.random.default_rng(seed))
        hidden = set(np.flatnonzero(labels != IGNORED))
        assert len(hidden) <= 5
        for word in words:
            assert not hidden & set(word) or hidden >= set(word)
        chosen |= hidden
    assert chosen == set(range(1, 13))


def test_a_row_of_special_tokens_hides_nothing():
    seen, labels = masking()(np.array([2, 1, 3]), np.random.default_rng(0))
    assert (labels == IGNORED).all() and seen.tolist() == [2, 1, 3]


def test_pieces_are_known_by_their_marks():
    def continues(*words):
        tokenizer = word_tokenizer(words)
        tokenizer.add_special_tokens({"mask_token": "[MASK]"})
        found = masking_of(tokenizer, 0.15, 1, True)
        return [bool(found.continues[tokenizer.convert_tokens_to_ids(word)]) for word in (*words, "[MASK]")]

    assert continues("a", "##b") == [False, True, False]
    assert continues("Ġa", "b") == [False, True, False]
    assert continues("▁a", "b") == [False, True, False]
    assert continues("a", "b") == [False, False, False]


def test_a_tokenizer_without_a_mask_is_an_error(tokenizer):
    with pytest.raises(UserError, match="no mask token"):
        masking_of(tokenizer, 0.15, 1, True)
