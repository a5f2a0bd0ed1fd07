"""Task.enlarge: the training split alone gets more rows, and none that another split has."""

import pytest

from keepfrac.tasks.rows import Rows, Splits
from keepfrac.tasks.text import TextTask
from tests.unit.tasks.test_text import SETTINGS


class Pairs(TextTask):
    """Two texts a row; the second row of train also stands in test."""

    problem = "classification"

    def read(self):
        def rows(*pairs):
            columns = {"text": [a for a, _ in pairs], "text_pair": [b for _, b in pairs]}
            return Rows({**columns, "label": [i % 2 for i in range(len(pairs))]})

        train = rows(("red door", "a map"), ("two apples", "it"))
        test, more = rows(("two apples", "it"), ("song", "box")), rows(("bad room", "a"))
        return Splits(train, rows(("good song", "a map")), test, "made up", "by hand", ("0", "1"), {"more": more})


def grow(rows: Rows) -> tuple[Rows, dict]:
    new = [("song", "box"), ("song", "map"), ("good song", "a map"), ("bad room", "a"), ("two apples", "it")]
    columns = {"text": [a for a, _ in new], "text_pair": [b for _, b in new], "label": [1] * len(new)}
    return Rows({name: rows[name] + columns[name] for name in rows.columns}), {"name": "by hand"}


@pytest.fixture
def task(tokenizer):
    task = Pairs(Pairs.Settings(**SETTINGS))
    task.use(tokenizer)
    return task


def test_only_the_training_split_grows_and_shares_no_new_text(task):
    before = {name: rows.digest() for name, rows in task.splits.named().items()}
    task.setup()
    task.enlarge(grow)
    found = task.splits.train
    assert list(found.texts()) == [
        ("red door", "a map"), ("two apples", "it"), ("song", "map"), ("two apples", "it"),
    ]  # fmt: skip
    assert found["label"] == [0, 1, 1, 1]
    after = {name: rows.digest() for name, rows in task.splits.named().items()}
    assert {name for name in before if before[name] != after[name]} == {"train"}
    described = task.describe()
    assert described["rows"] == {"train": 4, "val": 1, "test": 2, "more": 1}
    assert described["augmented"] == {"name": "by hand", "rows_after": 4, "left_out": 3}


def test_what_was_encoded_before_is_encoded_again(task):
    assert len(task.encoded("train")) == 2
    task.enlarge(grow)
    assert len(task.encoded("train")) == 4 and len(task.encoded("test")) == 2
    assert task.batches_per_epoch(1) == 1
