import logging

import pytest
import torch

from keepfrac.augmentation import candidates, maker
from keepfrac.augmentation.masked import MaskedWords
from keepfrac.augmentation.tinybert import TinyBertAugmentation
from keepfrac.errors import DataMissing, UserError
from keepfrac.tasks.rows import Rows

ROWS = Rows(
    {
        "text": ["a charming film", "the plot was unbelievable", "old music , new song", "it was dull"] * 3,
        "label": [1, 0, 1, 0] * 3,
    }
)


def grown(augmentation, rows=ROWS, task="sst2", **overrides):
    conditions = {"leads": True, "device": "cpu", "bf16": False, "report_progress": lambda done, of: None}
    return augmentation(rows, task=task, **conditions | overrides)


def test_pieces_decide_where_a_words_candidates_come_from(augmentation):
    rows, account = grown(augmentation(times=3))
    assert account["words"] == {"none": 0, "masked_lm": 8, "neighbours": 1}
    assert account["times"] == 3 and account["rows_before"] == 12 and len(rows) > 12
    assert set(zip(rows["text"], rows["label"], strict=True)) >= set(zip(ROWS["text"], ROWS["label"], strict=True))
    assert all(text.startswith(("a ", "the ", "it was ")) or "," in text for text in rows["text"])


@pytest.mark.parametrize(
    ("task", "times"), [("sst2", 20), ("mrpc", 30), ("stsb", 30), ("mnli", 10), ("qqp", 10), ("csv", 20)]
)
def test_how_many_is_by_task_unless_it_is_said(augmentation, task, times):
    assert grown(augmentation(), task=task)[1]["times"] == times
    assert grown(augmentation(times=2), task=task)[1]["times"] == 2


def test_the_second_time_loads_no_model_and_a_new_seed_neither(augmentation, monkeypatch):
    first, _ = grown(augmentation(times=4))
    monkeypatch.setattr(maker, "load_masked_lm", lambda source: pytest.fail("loaded again"))
    monkeypatch.setattr(MaskedWords, "predict", lambda *args: pytest.fail("predicted again"))
    assert grown(augmentation(times=4))[0] == first
    assert grown(augmentation(times=4, seed=1))[0] != first
    assert len(grown(augmentation(times=8, p=0.9))[0]) > len(first)


@pytest.mark.parametrize("change", [{"candidates": 3}, {"words": "neighbours"}, {"bf16": True}])
def test_what_changes_candidates_is_another_entry(augmentation, tmp_path, change):
    grown(augmentation())
    context = {key: change[key] for key in change if key == "bf16"}
    grown(augmentation(**{key: change[key] for key in change if key != "bf16"}), **context)
    assert len(list((tmp_path / "cache/keepfrac/augment").iterdir())) == 2


def test_chunks_and_interruptions_change_nothing(augmentation, monkeypatch, tmp_path):
    monkeypatch.setattr(candidates, "CHUNK", 1)
    whole, _ = grown(augmentation(times=4))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    original, calls = MaskedWords.predict, []

    def dies(self, asked, count):
        calls.append(len(asked))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, asked, count)

    with monkeypatch.context() as patch:
        patch.setattr(MaskedWords, "predict", dies)
        with pytest.raises(KeyboardInterrupt):
            grown(augmentation(times=4))
    assert len(list((tmp_path / "other/keepfrac/augment").glob("*/*.json.gz"))) == 2
    assert grown(augmentation(times=4))[0] == whole


def test_the_random_numbers_of_the_run_are_left_alone(augmentation, headless):
    before = torch.get_rng_state()
    grown(augmentation(model=str(headless)))
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_head_all_words_get_neighbours_and_a_warning(augmentation, headless, caplog):
    _, account = grown(augmentation(model=str(headless), times=2))
    assert account["words"]["masked_lm"] == 0 and account["words"]["neighbours"] == 9
    assert "no masked-LM head" in caplog.text
    with pytest.raises(UserError, match=r"augment.words=masked_lm.*no masked-LM head"):
        grown(augmentation(model=str(headless), words="masked_lm"))


def test_neighbours_alone_do_no_forward_pass(augmentation, monkeypatch, caplog):
    monkeypatch.setattr(MaskedWords, "__init__", lambda *args: pytest.fail("a model"))
    with caplog.at_level(logging.WARNING):
        assert grown(augmentation(words="neighbours"))[1]["words"]["neighbours"] == 9
    assert not caplog.records


def test_words_of_pieces_come_from_the_glove_file(augmentation, tmp_path):
    glove = tmp_path / "glove.txt"
    glove.write_text("unbelievable 1 0\nincredible 1 0.1\nplain 0 1\n")
    rows, account = grown(augmentation(times=40, candidates=1, glove=str(glove)))
    assert any("incredible" in text for text in rows["text"]) and not any("plain" in t for t in rows["text"])
    assert account["table"] == "GloVe glove.txt"
    glove.write_text("other 1 0\n")  # the same name with another content is another entry
    maker.glove_digest.cache_clear()
    assert grown(augmentation(glove=str(glove)))[1]["words"]["none"] == 1


def test_what_is_told_ends_with_all(augmentation):
    told = []
    grown(augmentation(), report_progress=lambda *progress: told.append(progress))
    assert told == [(4, 4)]  # each sentence once


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"times": 0}, "augment.times=0"),
        ({"p": 1.01}, "augment.p=1.01"),
        ({"p": -0.1}, "augment.p=-0.1"),
        ({"candidates": 0}, "augment.candidates=0"),
        ({"words": "all"}, "augment.words=all"),
    ],
)
def test_bad_settings_are_named(augmentation, overrides, message):
    with pytest.raises(UserError, match=message):
        augmentation(**overrides)


def test_what_cannot_be_augmented_says_so(augmentation):
    with pytest.raises(UserError, match="no sentences"):
        grown(augmentation(), Rows({"label": [1]}))
    with pytest.raises(UserError, match="have words beside their texts"):
        grown(augmentation(), Rows({"text": ["it was"], "words": [["it", "was"]], "label": [[0, 1]]}))
    with pytest.raises(UserError, match="no word"):
        grown(augmentation(), Rows({"text": ["12 7", "it was"], "label": [1, 0]}))
    with pytest.raises(DataMissing, match=r"augment.model=<folder"):
        grown(augmentation(model="nobody/nothing", package=None))


def test_contents_name_folders_and_files_by_what_is_in_them(augmentation, masked_lm, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model").symlink_to(masked_lm)
    settings = {"model": str(masked_lm), "package": None, "glove": None, "glove_words": 5}
    one = TinyBertAugmentation.contents(settings)
    other = TinyBertAugmentation.contents(settings | {"model": str(tmp_path / "run")})
    assert one == other and str(masked_lm) not in one.values()
    with pytest.raises(DataMissing, match=r"gone.txt"):
        TinyBertAugmentation.contents(settings | {"glove": str(tmp_path / "gone.txt")})
