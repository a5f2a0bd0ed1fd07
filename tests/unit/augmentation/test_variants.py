import numpy as np
import pytest

from keepfrac.augmentation.candidates import WordCandidates
from keepfrac.augmentation.variants import more_rows, variants
from keepfrac.tasks.rows import Rows

OTHERS = ("one", "two", "three", "four")


def choices_of(text: str) -> list[WordCandidates]:
    """Every word may be one of OTHERS, but for "stays"."""
    found, start = [], 0
    for word in text.split(" "):
        found.append(WordCandidates(start, start + len(word), "masked_lm", () if word == "stays" else OTHERS))
        start += len(word) + 1
    return found


def drawn(text: str, times=50, p=0.4, seed=0) -> list[str]:
    return variants(text, choices_of(text), times, p, np.random.default_rng(seed))


def test_words_are_replaced_at_the_rate_that_is_asked_for():
    text = " ".join(["stays", *["word"] * 1999])
    words = [one.split(" ") for one in drawn(text, times=20)]
    assert len(words) == 20 and all(one[0] == "stays" and len(one) == 2000 for one in words)
    flat = [word for one in words for word in one[1:]]
    rate = 1 - flat.count("word") / len(flat)
    assert rate == pytest.approx(0.4, abs=4 * (0.24 / len(flat)) ** 0.5)  # four standard errors
    shares = [flat.count(other) / len(flat) for other in OTHERS]
    assert shares == pytest.approx([0.1] * 4, abs=4 * (0.09 / len(flat)) ** 0.5)


def test_no_variant_is_the_sentence_or_stands_twice():
    found = drawn("red door", times=500)
    assert len(found) == len(set(found)) == 24  # 5 x 5 sentences of two words, less the sentence itself
    assert "red door" not in found
    assert drawn("stays") == [] and drawn("red door", p=0.0) == []
    assert all("red" not in one and "door" not in one for one in drawn("red door", p=1.0))


def test_all_but_the_words_stays_as_it_is():
    text = "Red  -  door\t!"
    choices = [WordCandidates(0, 3, "masked_lm", ("blue",)), WordCandidates(8, 12, "masked_lm", ("gate",))]
    found = variants(text, choices, 1, 1.0, np.random.default_rng(0))
    assert found == ["Blue  -  gate\t!"]


ROWS = Rows({"text": ["a b c", "stays"], "text_pair": ["d e f", "g h i"], "label": [0.5, 3.25], "id": [7, 8]})


def more(rows=ROWS, times=8, seed=0) -> Rows:
    return more_rows(rows, choices_of, times, 0.4, seed)


def test_each_sentence_of_a_pair_is_varied_while_the_other_stays():
    found = more()
    first = [i for i, number in enumerate(found["id"]) if number == 7]
    texts = list(zip(found["text"], found["text_pair"], strict=True))
    assert texts[0] == ("a b c", "d e f") and texts.count(("a b c", "d e f")) == 1
    assert all((text == "a b c") != (pair == "d e f") for text, pair in [texts[i] for i in first[1:]])
    assert {texts[i][0] == "a b c" for i in first[1:]} == {True, False}
    assert all(text == "stays" for (text, _), number in zip(texts, found["id"], strict=True) if number == 8)
    labels = {7: 0.5, 8: 3.25}
    assert found["label"] == [labels[number] for number in found["id"]]
    assert len(found) <= 2 + 3 * 8


def test_draws_depend_on_seed_and_texts_alone():
    whole = more()
    assert whole == more() and whole != more(seed=1)
    swapped = more(ROWS.take([1, 0]))
    second = [i for i, number in enumerate(whole["id"]) if number == 8]
    assert swapped.take(range(len(second))) == whole.take(second)
