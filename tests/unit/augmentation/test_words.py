import pytest

from keepfrac.augmentation.words import STOP_WORDS, find_words
from keepfrac.errors import UserError
from tests.unit.tasks.conftest import word_tokenizer


def strings(tokenizer, text):
    (sentence,) = find_words(tokenizer, [text])
    return [sentence.string(word) for word in sentence.words]


def test_words_stand_where_the_text_and_the_pieces_have_them(tokenizer):
    (sentence,) = find_words(tokenizer, ["The  Unbelievably?  charming film."])
    found = [(sentence.string(word), word.first, word.pieces) for word in sentence.words]
    # the un ##believ ##able... is unknown: ##ably is no piece
    assert found == [("charming", 3, 1), ("film", 4, 1)]
    (sentence,) = find_words(tokenizer, ["an Unbelievable, charmingly long film"])
    found = [(sentence.string(word), word.first, word.pieces) for word in sentence.words]
    assert found == [("Unbelievable", 1, 3), ("charmingly", 5, 2), ("long", 7, 1), ("film", 8, 1)]
    names = tokenizer.convert_ids_to_tokens(sentence.ids)
    assert names[1:4] == ["un", "##believ", "##able"] and names[5:9] == ["charming", "##ly", "long", "film"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("He was the film", ["film"]),  # stop words, in any case
        ("won't end", ["end"]),  # what an apostrophe cuts off
        ("end2 end end's", ["end", "end"]),
        ("énd film", ["film"]),  # the tokenizer reads "end"
        ("film\u0301 song", ["song"]),  # the accent is a sign of its own
        ("zebra film", ["film"]),  # not in the vocabulary
        ("", []),
        ("... 42", []),
    ],
)
def test_only_known_words_of_letters_are_replaceable(tokenizer, text, expected):
    assert strings(tokenizer, text) == expected


def test_stop_words_are_lower_case_words():
    assert len(STOP_WORDS) > 150 and all(word.isalpha() and word.islower() for word in STOP_WORDS)


def test_a_tokenizer_of_another_kind_is_refused():
    with pytest.raises(UserError, match="not WordPiece"):
        find_words(word_tokenizer(), ["the red door"])
