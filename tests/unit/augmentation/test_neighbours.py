import numpy as np
import pytest

from keepfrac.augmentation.neighbours import from_embeddings, from_glove, glove_digest
from keepfrac.errors import DataMissing, UserError

GLOVE = "film 1 0\nmovie 0.9 0.1\nMovie 2 0\npicture 0.5 0.5\n, 1 0.01\nsong 0 1\nnone -1 0\n"


@pytest.fixture
def glove(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "glove.txt"
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
        return str(path)

    return write


def test_the_nearest_by_cosine_without_the_word_itself(glove):
    table = from_glove(glove(GLOVE), 100)
    assert table.nearest("film", 3) == ("Movie", "movie", "picture")
    assert table.nearest("movie", 2) == ("film", "picture")  # in none of its spellings
    assert table.nearest("FILM", 2) == ("Movie", "movie")
    assert table.nearest("unheard", 3) == ()
    assert len(table.nearest("film", 50)) == 5


def test_words_of_pieces_are_the_mean_of_theirs(tokenizer):
    weight = np.random.default_rng(0).normal(size=(len(tokenizer), 8)).astype(np.float32)
    table = from_embeddings(weight, tokenizer)
    pieces = tokenizer.convert_tokens_to_ids(["charming", "##ly"])
    own = weight[pieces].mean(0)
    whole = {word: number for word, number in tokenizer.get_vocab().items() if word.isalpha()}

    def likeness(word: str) -> float:
        other = weight[whole[word]]
        return float(own @ other / np.linalg.norm(own) / np.linalg.norm(other))

    expected = sorted(whole, key=likeness, reverse=True)[:5]
    assert list(table.nearest("charmingly", 5)) == expected


def test_no_more_lines_are_read_than_asked_for(glove):
    path = glove(GLOVE + "broken\n")
    assert "song" not in from_glove(path, 4).words
    with pytest.raises(UserError, match="line 8"):
        from_glove(path, 8)


def test_words_with_spaces_are_read_and_left_out(glove):
    assert from_glove(glove("film 1 0\n. . . 1 2\nsong 0 1\n"), 10).words == ["film", "song"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("film 1 0\nsong 1\n", "line 2: 2 fields, where a word and 2 numbers must stand"),
        ("film 1 0\n\n", "line 2: an empty line"),
        ("film 1 0\nsong 1 x\n", "line 2: could not convert string to float: 'x'"),
        ("film 1 0\nsong 1 nan\n", "line 2: a number of song is not finite"),
        ("400000 300\nsong 1 2\n", "line 1: 2 fields"),  # word2vec's header
        ("film 1 0\n\udcff\udcfe 1 2\n", "line 2: not UTF-8"),
        (", 1 0\n. 1 2\n", "no word of letters"),
    ],
)
def test_a_malformed_line_is_named_with_its_reason(glove, text, reason):
    with pytest.raises(UserError, match=reason):
        from_glove(glove(text), 100)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataMissing, match=r"augment.glove=.*gone.txt: cannot be read"):
        glove_digest(str(tmp_path / "gone.txt"), 10)
