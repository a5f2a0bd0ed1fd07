import pytest
from transformers import AutoConfig, AutoTokenizer

from keepfrac.errors import UserError
from keepfrac.models.load import load_tokenizer
from keepfrac.models.vocabulary.tokenizers import SPECIAL, built

TEXTS = ["12 7 7 90", "7 12 5 [MASK]", "Äther 7"]
WORDS = {"kind": "words", "size": 100, "min_count": 1, "lowercase": False}
CONFIG = {"model_type": "bert", "max_position_embeddings": 64}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def made(texts=TEXTS, config=CONFIG, **changes):
    return built(WORDS | changes, lambda: texts, AutoConfig.for_model(**config))


def words_of(tokenizer):
    return tokenizer.convert_ids_to_tokens(range(len(tokenizer)))


def test_words_by_frequency_and_alphabet_after_the_special_ones():
    tokenizer = made()
    assert words_of(tokenizer) == [*SPECIAL, "7", "12", "5", "90", "Äther"]
    assert tokenizer("7 12 1")["input_ids"] == [2, 5, 6, 1, 3]
    assert tokenizer.pad_token_id == 0 and tokenizer.unk_token_id == 1 and tokenizer.mask_token_id == 4
    assert tokenizer.model_max_length == 64


def test_pairs_have_segments_where_the_model_knows_them():
    assert made()("7", "12")["token_type_ids"] == [0, 0, 0, 1, 1]
    assert "token_type_ids" not in made(config={"model_type": "distilbert"})("7", "12")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"min_count": 2}, ["7", "12"]),
        ({"size": 6}, ["7"]),
        ({"lowercase": True}, ["7", "12", "5", "90", "[mask]", "äther"]),
    ],
)
def test_size_min_count_and_case(changes, expected):
    assert words_of(made(**changes))[len(SPECIAL) :] == expected


def test_pieces_are_trained_on_the_texts():
    texts = ["The worlds of words", "the Words of the world."] * 5
    tokenizer = made(texts, kind="wordpiece", size=60, lowercase=True)
    assert len(tokenizer) <= 60 and words_of(tokenizer)[: len(SPECIAL)] == list(SPECIAL)
    coded = tokenizer("The Worldsof [MASK] zebra")["input_ids"]
    assert tokenizer.mask_token_id in coded and tokenizer.unk_token_id in coded
    assert tokenizer.tokenize("Worlds") == ["worlds"]
    again = made(texts, kind="wordpiece", size=60, lowercase=True)
    assert words_of(again) == words_of(tokenizer)


@pytest.mark.parametrize("kind", ["words", "wordpiece"])
def test_it_comes_back_from_a_models_folder(tmp_path, kind):
    tokenizer = made(kind=kind)
    AutoConfig.for_model(**CONFIG).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert len(again) == len(tokenizer) and again.model_max_length == 64
    for texts in (TEXTS, ["7 zebra 12"]):
        assert again(texts, texts).data == tokenizer(texts, texts).data
    assert again.mask_token_id == tokenizer.mask_token_id


def test_it_is_made_once_for_the_same_texts_and_settings(monkeypatch):
    from keepfrac.models.vocabulary import tokenizers

    calls = []
    make = tokenizers._make
    monkeypatch.setattr(tokenizers, "_make", lambda *given: calls.append(1) or make(*given))
    assert words_of(made()) == words_of(made())
    assert len(calls) == 1
    made(TEXTS[:1])
    made(min_count=2)
    assert len(calls) == 3


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"kind": "letters"}, "kind=letters"),
        ({"size": 5}, "size=5"),
        ({"min_count": 0}, "min_count=0"),
        ({"lowercase": "no"}, "lowercase=no"),
        ({"cased": True}, "model.tokenizer.cased: no such key"),
        ({"min_count": 9}, "no word"),
    ],
)
def test_what_is_not_allowed_is_named(changes, named):
    with pytest.raises(UserError, match=named):
        made(**changes)


def test_a_vocabulary_is_not_made_for_weights_that_have_one():
    settings = {"tokenizer": WORDS, "config": None, "run": "somewhere", "name": "x", "package": None}
    with pytest.raises(UserError, match="random weights only"):
        load_tokenizer(settings, lambda: TEXTS)
