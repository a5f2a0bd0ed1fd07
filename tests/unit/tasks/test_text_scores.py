import importlib.util
import math

import pytest
import torch
from torchmetrics.functional.text import bleu_score, sacre_bleu_score

from keepfrac.errors import UserError
from keepfrac.tasks.metrics import text
from keepfrac.tasks.metrics.text import SCORES, TextScores, check_installed, rouge_l

TEXTS = ["The Blue Spice is a coffee shop in the city centre.", "Clowns pub is cheap, and near the river.", "Yes"]
REFERENCES = [
    ["A coffee shop in the city centre area called Blue Spice.", "Blue Spice is a coffee shop in city centre."],
    ["Clowns is a cheap pub near the river."],
    ["No.", "Never", "Yes, it is"],
]


def test_bleu_is_torchmetrics_own_in_lower_case():
    found = text.bleu(TEXTS, REFERENCES)
    other = sacre_bleu_score(TEXTS, REFERENCES, tokenize="13a", lowercase=True)
    assert found == pytest.approx(other.item(), abs=1e-6) and 0.2 < found < 0.8
    assert text.bleu([text.upper() for text in TEXTS], REFERENCES) == pytest.approx(found)
    plain = ["a b c d e"], [["a b c d f", "a b c x e"]]
    assert text.bleu(*plain) == pytest.approx(bleu_score(*plain).item(), abs=1e-6)


def test_a_short_text_is_as_short_against_its_own_references_alone():
    """Another text's further references give it none that is empty, which would spare it the brevity penalty."""
    texts = ["the cat sat", "a dog ran in the wide park"]
    references = [["the cat sat on the mat today"], ["a dog ran in the wide park", "a dog was in a park there"]]
    # by hand: every n-gram of the texts is in a reference; 3 + 7 words, against the closest references' 7 + 7
    assert text.bleu(texts, references) == pytest.approx(math.exp(1 - 14 / 10))


def test_rouge_l_of_known_texts():
    # computed with rouge-score 0.1.2, RougeScorer(["rougeL"]).score_multi(...)["rougeL"].fmeasure
    assert rouge_l(["the cat sat"], [["the cat sat"]]) == 1.0
    assert rouge_l(["police killed the gunman"], [["police kill the gunman"]]) == pytest.approx(0.75)
    assert rouge_l(["It's 10 o'clock!"], [["it s 10 o clock"]]) == 1.0
    assert rouge_l(["a b", ""], [["b a", "a c b"], ["x"]]) == pytest.approx((0.8 + 0.0) / 2)


def test_nist_by_hand():
    # each unigram weighs log2(words of all references / its count), the bigram log2(1 / 1); no penalty at equal length
    assert text.nist(["a b"], [["a b"]]) == pytest.approx((1 + 1) / 2 + 0 / 1)
    assert text.nist(["a b"], [["a b", "c d"]]) == pytest.approx((2 + 2) / 2)
    half = math.exp(math.log(0.5) / math.log(1.5) ** 2 * math.log(0.5) ** 2)
    assert text.nist(["a"], [["a b"]]) == pytest.approx(half)
    assert text.nist(["", ""], [["a b"], ["c"]]) == 0.0


@pytest.mark.parametrize("name", SCORES)
def test_the_better_text_scores_higher_and_nothing_scores_zero(name):
    score = SCORES[name]
    perfect = [some[0] for some in REFERENCES]
    assert score(["", "", ""], REFERENCES) == 0.0
    assert score(TEXTS, REFERENCES) < score(perfect, REFERENCES)
    if name != "nist":
        assert score(perfect, REFERENCES) == pytest.approx(1.0)


def test_a_missing_package_is_said(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_installed(["rouge_l"])
    with pytest.raises(UserError, match=r"bleu needs the package sacrebleu.*make install`"):
        check_installed(["bleu"])


def test_scores_do_not_depend_on_the_order_of_batches():
    said = {0: "a b c d", 1: "x", 2: "a b"}
    references = {0: ["a b c d e"], 1: ["x"], 2: ["b a"]}
    seen = []

    def read(tokens, numbers):
        seen.append(tokens.tolist())
        return [said[n] for n in numbers.tolist()], [references[n] for n in numbers.tolist()]

    found = []
    for parts in ([[2, 0], [1]], [[1], [0], [2]]):
        metric = TextScores(["bleu", "rouge_l"], read)
        for part in parts:
            metric.update(torch.tensor([[n, n] for n in part]), torch.tensor(part))
        found.append({name: value.item() for name, value in metric.compute().items()})
    assert found[0] == found[1] and seen == [[[0, 0], [1, 1], [2, 2]]] * 2
    assert set(found[0]) == {"bleu", "rouge_l"}
