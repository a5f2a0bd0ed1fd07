import threading
import time

import pytest

from keepfrac.augmentation import candidates
from keepfrac.augmentation.candidates import Store, WordCandidates
from keepfrac.errors import UserError

SENTENCES = [f"sentence {i}" for i in range(10)]


def made(texts):
    """Of each sentence two words, one of which has no candidates."""
    return [
        [WordCandidates(0, 8, "masked_lm", (text[::-1], "word")), WordCandidates(9, len(text), "none", ())]
        for text in texts
    ]


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setattr(candidates, "CHUNK", 4)

    def make(work=made, leads=True, told=None):
        return Store(tmp_path / "entry", work, leads, lambda *progress: told is None or told.append(progress))

    return make


def never(texts):
    pytest.fail("made again")


def test_chunks_are_made_once_and_told(store):
    told = []
    assert store(told=told).candidates(SENTENCES) == made(SENTENCES)
    assert told == [(4, 10), (8, 10), (10, 10)]
    assert store(never).candidates(SENTENCES) == made(SENTENCES)


def test_what_was_killed_goes_on_where_it_was(store, tmp_path):
    def dies(texts):
        if texts[0] == SENTENCES[8]:
            raise KeyboardInterrupt
        return made(texts)

    with pytest.raises(KeyboardInterrupt):
        store(dies).candidates(SENTENCES)
    asked = []
    found = store(lambda texts: asked.extend(texts) or made(texts)).candidates(SENTENCES)
    assert found == made(SENTENCES) and asked == SENTENCES[8:]
    assert not list((tmp_path / "entry").glob(".0*"))


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 torn", None])
def test_a_damaged_chunk_is_made_again(store, tmp_path, damage):
    store().candidates(SENTENCES)
    path = tmp_path / "entry" / "000001.json.gz"
    path.write_bytes(path.read_bytes()[:-40] if damage is None else damage)
    asked = []
    found = store(lambda texts: asked.extend(texts) or made(texts)).candidates(SENTENCES)
    assert found == made(SENTENCES) and asked == SENTENCES[4:8]


def test_a_chunk_without_any_word(store):
    assert store(lambda texts: [[] for _ in texts]).candidates(SENTENCES) == [[]] * 10
    assert store(never).candidates(SENTENCES) == [[]] * 10


def test_jobs_that_start_together_share_the_work(store):
    asked, found = [], []

    def slow(texts):
        time.sleep(0.02)
        asked.append(texts[0])
        return made(texts)

    threads = [threading.Thread(target=lambda: found.append(store(slow).candidates(SENTENCES))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(asked) == [SENTENCES[0], SENTENCES[4], SENTENCES[8]]
    assert found == [made(SENTENCES)] * 3


def test_processes_that_follow_only_read(store):
    with pytest.raises(UserError, match="XDG_CACHE_HOME"):
        store(never, leads=False).candidates(SENTENCES)
    store().candidates(SENTENCES)
    assert store(never, leads=False).candidates(SENTENCES) == made(SENTENCES)


def test_a_disk_that_cannot_be_written_costs_the_cache_alone(store, tmp_path, caplog):
    (tmp_path / "entry").write_text("a file where the folder should be")
    assert store().candidates(SENTENCES) == made(SENTENCES)
    assert "not cached" in caplog.text
