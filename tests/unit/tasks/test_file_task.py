import json

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from keepfrac.errors import DataMissing, UserError
from keepfrac.storage.build import build
from keepfrac.tasks import account
from tests.unit.tasks.conftest import settings_of


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


@pytest.mark.parametrize("mark", [",", ";", "|"])
def test_labels_that_seem_to_be_several_need_a_separator(make_task, file, mark):
    rows = [f"sport{mark}news", "sport", "news"] * 40
    labels = [f'"{row}"' for row in rows]  # quoted, so that a comma stays in its cell
    with pytest.raises(UserError, match=rf"line 2: 'sport\{mark}news' seems to hold.*task.label_separator='\{mark}'"):
        several(make_task, file, *labels).fingerprint()
    assert several(make_task, file, *labels, label_separator=mark).labels == ("news", "sport")
    listed = several(make_task, file, *labels, labels=["sport", "news", f"sport{mark}news"])
    assert listed.labels[2] == f"sport{mark}news"


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (("yes", "no", ""), r"30 of 90 rows have no label \(lines 4, 7, 10, 13, 16, \.\.\.: ''\)"),
        (("yes", "no", "nan"), r"30 of 90 rows have no label .*'nan'.*list a class of that name in task\.labels"),
        (("0", "1", "0.0"), r"one number is written in 2 ways .*'0': 30 rows, lines 2, .*'0\.0': 30 rows, lines 4, "),
        ((0.5, 1, 2), r"3 different numbers in 90 rows, such as 0\.5: .*task\.problem=regression"),
        (tuple(range(90)), r"90 different numbers in 90 rows, such as 0: .*task\.problem=regression"),
    ],
)
def test_what_is_no_label_is_refused_unless_it_is_listed(make_task, file, labels, said):
    path = file("a.csv", rows(90, labels=labels))
    with pytest.raises(UserError, match=said):
        make_task("csv", train_file=path, **NAMED).fingerprint()
    assert make_task("csv", train_file=path, labels=list(labels), **NAMED).labels == tuple(map(str, labels))


def test_numbers_of_which_each_has_rows_are_classes(make_task, file):
    task = make_task("csv", train_file=file("a.csv", rows(300, labels=tuple(range(60)))), **NAMED)
    assert len(task.labels) == 60


def test_blanks_around_a_label_do_not_count_and_are_said(make_task, file):
    plain, padded = (
        make_task("csv", train_file=file(f"{name}.csv", rows(90, labels=labels)), **NAMED)
        for name, labels in (("a", ("pos", "neg", "pos")), ("b", ("pos ", "neg", " pos")))
    )
    assert padded.fingerprint() == plain.fingerprint()
    described = padded.describe()
    assert described["labels_trimmed"] == {"b.csv": 60} and "labels_trimmed" not in plain.describe()
    assert "labels that had blanks around them: 60 in b.csv" in account.lines(described)


def test_labels_that_differ_in_case_alone_are_said(make_task, file):
    task = make_task("csv", train_file=file("a.csv", rows(90, labels=("Pos", "neg", "pos"))), **NAMED)
    assert account.lines(task.describe())[-1].endswith("case alone: Pos, pos")


SPLITS = ("train", "validation", "test")


@pytest.mark.parametrize("copies", [("validation", "train"), ("test", "train"), ("test", "validation")])
def test_a_file_that_is_in_another_one_is_refused(make_task, file, copies):
    files = {f"{name}_file": file(f"{name}.csv", rows(30, start=100 * i)) for i, name in enumerate(SPLITS)}
    copy, of = (f"{name}_file" for name in copies)
    files[copy] = file("copy.csv", rows(20, start=100 * SPLITS.index(copies[1])))
    with pytest.raises(UserError, match=rf"task\.{copy}=.*: all 20 rows stand in task\.{of}="):
        make_task("csv", **files, **NAMED).fingerprint()


def test_rows_that_two_files_share_are_counted(make_task, file):
    files = {"train_file": file("a.csv", rows(60)), "test_file": file("b.csv", rows(30, start=50))}
    described = make_task("csv", **files, validation_file=file("c.csv", rows(9, start=900)), **NAMED).describe()
    assert described["account"]["test"]["shared"] == {"train": 10} and "shared" not in described["account"]["val"]
    assert "10 stand in train too" in account.lines(described)[2]


def positives(make_task, file, labels, more):
    metrics = ["accuracy", "f1", "precision", "recall", "acc_and_f1"]
    settings = {"train_file": file("a.csv", rows(90, labels=labels)), "metrics": metrics} | NAMED | more
    return make_task("csv", **settings)


@pytest.mark.parametrize("positive", ["fraud", "legit"])
def test_the_positive_class_is_the_one_that_is_named(make_task, file, positive):
    task = positives(make_task, file, ("fraud", "legit"), {"positive": positive})
    truth, called = np.array([0, 0, 0, 1, 1, 1, 1, 1]), np.array([0, 1, 1, 1, 1, 1, 0, 1])
    metrics = task.metrics("test")
    metrics.update(torch.from_numpy(called), torch.from_numpy(truth))
    found, number = metrics.compute(), task.labels.index(positive)
    for name, score in (("f1", sk.f1_score), ("precision", sk.precision_score), ("recall", sk.recall_score)):
        assert float(found[name]) == pytest.approx(score(truth, called, pos_label=number))
    assert float(found["acc_and_f1"]) == pytest.approx((5 / 8 + sk.f1_score(truth, called, pos_label=number)) / 2)
    assert task.describe()["positive"] == positive
    assert account.lines(task.describe())[-1].endswith(f"the class {positive!r}")


@pytest.mark.parametrize("labels", [("0", "1"), ("-1", "1"), ("no", "yes"), ("False", "True"), ("NEG", "POS")])
def test_names_that_say_which_class_is_positive_need_no_more(make_task, file, labels):
    task = positives(make_task, file, labels, {})
    assert task.labels[task.positive] == labels[1] == task.describe()["positive"]


@pytest.mark.parametrize(
    ("labels", "more", "said"),
    [
        (("fraud", "legit"), {}, "f1 is of one class: type task.positive=fraud or task.positive=legit, or .*f1_macro"),
        (("1", "0"), {"labels": [1, 0]}, "f1 is of one class: type task.positive=1 or task.positive=0"),
        (("fraud", "legit"), {"positive": "scam"}, "positive=scam: the classes are fraud and legit"),
        (("fraud", "legit"), {"positive": "fraud", "metrics": ["accuracy"]}, "positive=fraud: no effect without one"),
        (("a", "b", "c"), {}, "f1 is no metric of a classification of 3 classes"),
    ],
)
def test_a_positive_class_that_is_not_clear_is_refused(make_task, file, labels, more, said):
    with pytest.raises(UserError, match=said):
        positives(make_task, file, labels, more).fingerprint()


def test_settings_of_before_the_positive_class_are_read(make_task, file):
    settings = settings_of("csv", train_file=file("a.csv", rows(90)), **NAMED)
    del settings["positive"]
    assert build(settings).labels == ("maybe", "no", "yes")
