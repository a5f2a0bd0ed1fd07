"""What is said of the rows of a run."""

import numpy as np
import pytest

from keepfrac.errors import UserError
from keepfrac.tasks import account
from keepfrac.tasks.rows import Rows, Splits, refuse_copies
from keepfrac.tasks.tokens import Tokens


def splits(train, validation, test, labels=("bad", "good")):
    return Splits(train, validation, test, "made up", "by hand", labels)


def rows(*pairs):
    return Rows({"text": [text for text, _ in pairs], "label": [label for _, label in pairs]})


TRAIN = rows(("a b", 0), ("a c", 1), ("d", 1), ("d", 0))
VAL, TEST = rows(("x", 0), ("d", 1)), rows(("A  b", 1), ("x", 0), ("  ", 0))


def test_classes_shared_rows_and_texts():
    found = account.account(splits(TRAIN, VAL, TEST), {})
    assert found["train"] == {"rows": 4, "longest_text": 3, "classes": {"bad": 2, "good": 2}}
    assert found["val"]["shared"] == {"train": 1}
    assert found["test"]["shared"] == {"train": 1, "val": 1}
    assert found["test"]["without_text"] == 1


def test_what_is_cut_is_a_share_of_the_rows():
    encoded = Tokens(np.zeros(20, np.int32), None, np.array([0, 3, 11, 16, 20]), truncated=1)
    found = account.account(splits(TRAIN, VAL, TEST), {"train": encoded})
    assert (found["train"]["longest"], found["train"]["truncated"]) == (8, 0.25)
    said = account.lines({"account": found})
    assert said[0] == "train: 4 rows (bad: 2, good: 2); longest 3 characters, 8 tokens, 25.0 % of the rows cut"
    assert said[1].endswith("1 stand in train too; few rows: one is 50.0 % of them")


def test_scores_several_labels_and_many_classes():
    scored = rows(("a", 0.5), ("b", 2.0))
    found = account.account(splits(scored, scored, scored, None), {})
    assert found["train"]["scores"] == [0.5, 1.25, 2.0]
    assert "(scores 0.5 to 2, mean 1.25)" in account.lines({"account": found})[0]
    several = rows(("a", [0, 1]), ("b", []), ("c", [1]))
    found = account.account(splits(several, several, several), {})
    assert (found["train"]["classes"], found["train"]["without_label"]) == ({"bad": 1, "good": 2}, 1)
    assert "(bad: 1, good: 2, no label: 1)" in account.lines({"account": found})[0]
    many = rows(*((f"t{i}", i % 40) for i in range(50)))
    found = account.account(splits(many, many, many, tuple(map(str, range(40)))), {})
    assert "50 rows (40 classes of 1 to 2)" in account.lines({"account": found})[0]


def test_a_set_within_another_is_refused_unless_its_labels_differ():
    names = {"train": "a.csv", "test": "b.csv"}
    inside = rows(("a c", 1), ("d", 0))
    with pytest.raises(UserError, match=r"b\.csv: all 2 rows stand in a\.csv too"):
        refuse_copies({"train": TRAIN, "test": inside}, names)
    refuse_copies({"train": TRAIN, "test": rows(("a c", 0))}, names)
    refuse_copies({"train": TRAIN, "test": TEST}, names)
