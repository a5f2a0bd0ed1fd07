import pytest
import torch

from keepfrac.augmentation import masked as module
from keepfrac.augmentation.masked import MaskedWords
from keepfrac.augmentation.words import find_words
from keepfrac.models.load import load_masked_lm

TEXTS = ["a charming film", "the plot was long , the music dull and the old joke awful .", "song"]


def asked_of(tokenizer, texts=TEXTS):
    return [(one, word.first) for one in find_words(tokenizer, texts) for word in one.words if word.pieces == 1]


def predicted(folder, tokenizer, asked, count=5, dtype=torch.float32):
    return MaskedWords(load_masked_lm(str(folder))[0], tokenizer, "cpu", dtype).predict(asked, count)


@torch.no_grad()
def one_by_one(folder, tokenizer, asked, count=5):
    """The same by the tokenizer's own pair and the logits of all places."""
    net, _ = load_masked_lm(str(folder))
    for sentence, position in asked:
        names = tokenizer.convert_ids_to_tokens(sentence.ids)
        own = names[position]
        first = ["[CLS]", *names[:position], "[MASK]", *names[position + 1 :], "[SEP]"]
        second = [*names, "[SEP]"]
        ids = tokenizer.convert_tokens_to_ids(first + second)
        types = [0] * len(first) + [1] * len(second)
        logits = net(torch.tensor([ids]), token_type_ids=torch.tensor([types])).logits[0, first.index("[MASK]")]
        ranked = tokenizer.convert_ids_to_tokens(logits.argsort(descending=True).tolist())
        yield tuple(word for word in ranked if word.isalpha() and word != own)[:count]


@pytest.mark.parametrize("tokens", [8192, 40])
def test_the_likeliest_words_are_those_of_a_plain_forward(masked_lm, tokenizer, monkeypatch, tokens):
    monkeypatch.setattr(module, "TOKENS", tokens)
    asked = asked_of(tokenizer)
    assert len(asked) == 10
    found = predicted(masked_lm, tokenizer, asked)
    assert found == list(one_by_one(masked_lm, tokenizer, asked))
    assert len(set(found)) > 1


def test_as_many_words_as_there_are(masked_lm, tokenizer):
    words = {word for word in tokenizer.get_vocab() if word.isalpha()}
    (found,) = predicted(masked_lm, tokenizer, asked_of(tokenizer, ["song"]), 100)
    assert set(found) == words - {"song"}


def test_long_sentences_are_read_up_to_half_the_model(masked_lm, tokenizer):
    net = MaskedWords(load_masked_lm(str(masked_lm))[0], tokenizer, "cpu", torch.float32)
    (sentence,) = find_words(tokenizer, ["film " * 50])
    assert net.limit == 30 and net.fits(29) and not net.fits(30)
    assert len(net.predict([(sentence, 29)], 3)[0]) == 3


def test_bfloat16_gives_words_too(masked_lm, tokenizer):
    found = predicted(masked_lm, tokenizer, asked_of(tokenizer), dtype=torch.bfloat16)
    assert all(len(words) == 5 for words in found)
