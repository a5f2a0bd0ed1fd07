import json

import pytest

from keepfrac.errors import DataMissing, UserError


@pytest.fixture
def file(tmp_path):
    def write(name, rows):
        path = tmp_path / name
        if name.endswith(".jsonl"):
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            lines = [",".join(rows[0]), *(",".join(str(value) for value in row.values()) for row in rows)]
            path.write_text("\n".join(lines) + "\n")
        return str(path)

    return write


def rows(count, labels=("yes", "no", "maybe"), start=0):
    return [
        {"body": f"text number {i}", "other": f"pair {i}", "answer": labels[i % len(labels)]}
        for i in range(start, start + count)
    ]


NAMED = {"text": "body", "label": "answer"}


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_one_file_is_cut_in_three(make_task, file, kind, tokenizer):
    task = make_task("csv", train_file=file(f"a.{kind}", rows(200)), **NAMED)
    counts = task.describe()["rows"]
    assert sum(counts.values()) == 200
    assert min(counts.values()) > 5
    assert task.labels == ("maybe", "no", "yes")
    assert task.describe()["splits"] == "validation and test are 10 % of train each, by a hash of the text"
    task.use(tokenizer)
    assert next(iter(task.train_dataloader()))["labels"].max() <= 2


def test_csv_and_jsonl_of_the_same_rows_are_the_same_data(make_task, file):
    one, other = (make_task("csv", train_file=file(f"a.{kind}", rows(200)), **NAMED) for kind in ("csv", "jsonl"))
    assert one.fingerprint() == other.fingerprint()


def test_own_files_for_validation_and_test(make_task, file):
    files = {
        "train_file": file("train.csv", rows(90)),
        "validation_file": file("val.jsonl", rows(9, start=100)),
        "test_file": file("test.csv", rows(6, start=200)),
    }
    assert make_task("csv", **files, **NAMED).describe()["rows"] == {"train": 90, "val": 9, "test": 6}
    without = make_task("csv", **files | {"validation_file": None}, **NAMED).describe()
    assert without["rows"]["test"] == 6
    assert without["rows"]["train"] + without["rows"]["val"] == 90
    without = make_task("csv", **files | {"test_file": None}, **NAMED).describe()
    assert without["rows"]["val"] == 9
    assert without["rows"]["train"] + without["rows"]["test"] == 90


def test_pairs_given_labels_and_a_subset(make_task, file):
    path = file("a.csv", rows(200, labels=(1, 0)))
    task = make_task("csv", train_file=path, text_pair="other", labels=[1, 0], rows=20, **NAMED)
    assert task.labels == ("1", "0")
    assert len(task.splits.train) == 20
    assert "text_pair" in task.splits.train
    assert sum(task.splits.train["label"]) == 10


def test_a_regression(make_task, file):
    task = make_task("csv", problem="regression", train_file=file("a.csv", rows(200, labels=(0.5, 2))), **NAMED)
    assert (task.labels, task.num_labels) == (None, 1)
    assert set(task.metrics("val").keys()) == {"pearson", "spearman", "pearson_and_spearman"}
    assert set(task.splits.train["label"]) == {0.5, 2.0}


@pytest.mark.parametrize(
    ("count", "labels", "problem", "said"),
    [
        (90, ("perhaps",), "classification", r"b\.csv, line 2: label 'perhaps'; allowed are maybe, no, yes"),
        (9, None, "regression", r"a\.csv, line 2: score 'yes'; allowed is a finite number"),
        (3, None, "classification", "split is empty"),
    ],
)
def test_what_is_wrong_is_said(make_task, file, count, labels, problem, said):
    test = file("b.csv", rows(1, labels=labels)) if labels else None
    with pytest.raises(UserError, match=said):
        make_task("csv", problem=problem, train_file=file("a.csv", rows(count)), test_file=test, **NAMED).fingerprint()


def test_what_to_type(make_task):
    with pytest.raises(UserError, match=r"type task\.train_file="):
        make_task("csv").fingerprint()
    with pytest.raises(DataMissing, match=r"none\.csv: no such file"):
        make_task("csv", train_file="none.csv").fingerprint()


def several(make_task, file, *labels, **overrides):
    rows = [{"body": f"text number {i}", "answer": one} for i, one in enumerate(labels)]
    return make_task("csv", train_file=file("a.csv", rows), **NAMED | {"multi_label": True} | overrides)


def test_rows_with_any_number_of_labels(make_task, file, tokenizer):
    task = several(make_task, file, *["red blue", "", "blue", "10", " green  red "] * 40)
    assert task.labels == ("10", "blue", "green", "red")
    assert task.problem == "multi_label" and task.best_metric == "one_minus_mlogloss"
    assert {tuple(label) for label in task.splits.train["label"]} == {(1, 3), (), (1,), (0,), (2, 3)}
    task.use(tokenizer)
    assert next(iter(task.train_dataloader()))["labels"].shape == (4, 4)


def test_labels_may_stand_between_separators_and_hold_blanks(make_task, file):
    task = several(make_task, file, *["dark red; blue", "blue", ""] * 40, label_separator=";")
    assert task.labels == ("blue", "dark red")
    task = several(make_task, file, *["2 10", "10"] * 40, labels=[2, 10])
    assert task.labels == ("2", "10")


@pytest.mark.parametrize(
    ("labels", "overrides", "named"),
    [
        (["a b", "c a"], {"labels": ["a", "b"]}, "line 3: label 'c'; allowed are a, b"),
        (["a b", "b b"], {}, "line 3: label 'b' stands there twice"),
        (["a b", "a;;b"], {"label_separator": ";"}, "line 3: nothing between two separators of 'a;;b'"),
        (["a", "a"], {}, "1 different labels"),
        (
            ["a b"],
            {"problem": "regression"},
            "problem=regression: allowed with task.multi_label=true is classification",
        ),
        (["a b"], {"label_separator": ""}, "label_separator=: must be a text, or null"),
        (
            ["a", "b"],
            {"label_separator": ";", "multi_label": False},
            "label_separator=;: must be null without task.multi_label=true",
        ),
        (
            ["a b"],
            {"problem": "multi_label", "multi_label": False},
            "problem=multi_label: must be one of classification, regression",
        ),
    ],
)
def test_what_is_wrong_with_several_labels_is_named(make_task, file, labels, overrides, named):
    with pytest.raises(UserError, match=named):
        several(make_task, file, *labels, **overrides).fingerprint()
