import numpy as np
import pytest
import torch

from keepfrac.errors import DataMissing, UserError
from keepfrac.tasks.gaiic import LABELS, fold_of, read_reports

LINES = ["0|,|12 7 7 90 |,|2 ", "1|,|5 6|,|", "2|,|8 9 10|,|16 0"]


def report(number: int) -> str:
    return f"{number}|,|{number} {number % 7} {number % 3}|,|{number % 17 if number % 4 else ''}"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "train.csv").write_text("\n".join(report(i) for i in range(200)) + "\n")
    (tmp_path / "test.csv").write_text("\n".join(report(i) for i in range(1000, 1020)) + "\n")
    return tmp_path


def written(tmp_path, *lines):
    path = tmp_path / "reports.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_words_and_labels_are_read_and_no_label_is_legal(tmp_path):
    rows = read_reports(written(tmp_path, *LINES))
    assert rows["text"] == ["12 7 7 90", "5 6", "8 9 10"]
    assert rows["label"] == [[2], [], [0, 16]]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("3|,|5 6", "2 parts between"),
        ("3|,|5 6|,|1|,|", "4 parts between"),
        ("3|,| |,|1", "no words"),
        ("|,|5 6|,|1", "the id ''"),
        ("3|,|5 6|,|17", "label '17'; allowed are 0 to 16"),
        ("3|,|5 6|,|x", "label 'x'"),
        ("3|,|5 6|,|4 4", "a label stands twice in '4 4'"),
        ("2|,|5 6|,|4", "the id 2 stands in an earlier line too"),
        ("", "1 parts between"),
    ],
)
def test_a_malformed_line_is_named_with_its_reason(tmp_path, line, reason):
    path = written(tmp_path, *LINES, line, report(9))
    with pytest.raises(UserError, match="line 4: ") as caught:
        read_reports(path)
    assert str(path) in str(caught.value) and reason in str(caught.value)
    assert "more such lines" not in str(caught.value)


def test_several_malformed_lines_are_counted(tmp_path):
    with pytest.raises(UserError, match=r"line 2: .*; and 2 more such lines"):
        read_reports(written(tmp_path, LINES[0], "x", LINES[1], "y", "z"))


def test_test_is_as_given_and_validation_a_part_of_train(folder, make_task):
    task = make_task("gaiic", data_dir=str(folder))
    splits = task.splits
    assert splits.labels == LABELS
    assert len(splits.train) + len(splits.validation) == 200 and len(splits.test) == 20
    assert not {*splits.train["text"]} & {*splits.validation["text"]}
    assert make_task("gaiic", data_dir=str(folder), seed=5).fingerprint() == task.fingerprint()


def test_folds_divide_train_and_leave_the_given_test_unread(folder, make_task):
    (folder / "test.csv").unlink()
    held_out, sizes = [], []
    for fold in range(4):
        splits = make_task("gaiic", data_dir=str(folder), folds=4, fold=fold).splits
        parts = [{*rows["text"]} for rows in (splits.train, splits.validation, splits.test)]
        assert sum(map(len, parts)) == 200 and len(set.union(*parts)) == 200
        assert len(splits.validation) < 60
        held_out += splits.test["text"]
        sizes.append(len(splits.test))
        assert f"fold {fold} of 4" in splits.how and "not read" in splits.how
    assert len(held_out) == len({*held_out}) == 200
    assert min(sizes) > 30


def test_folds_are_of_about_one_size_and_rows_of_one_text_stay_together():
    folds = fold_of([f"{i} {i}" for i in range(2000)] + ["1  1"], 5)
    assert np.bincount(folds).min() > 340
    assert folds[-1] == folds[1]


def test_without_a_folder_the_error_says_what_to_type(make_task, monkeypatch, folder):
    monkeypatch.delenv("GAIIC_DATA", raising=False)
    with pytest.raises(DataMissing, match=r"task\.data_dir=.*GAIIC_DATA"):
        make_task("gaiic").fingerprint()
    monkeypatch.setenv("GAIIC_DATA", str(folder))
    assert len(make_task("gaiic").splits.test) == 20


def test_a_batch_holds_ones_and_zeros_and_the_loss_is_that_of_each_label(folder, make_task, tokenizer):
    task = make_task("gaiic", data_dir=str(folder))
    task.use(tokenizer)
    batch = task.probe_batch(6)
    labels = task.splits.validation["label"][:6]
    assert batch["labels"].shape == (6, 17) and batch["labels"].dtype == torch.float32
    assert [row.nonzero().flatten().tolist() for row in batch["labels"]] == labels
    logits = torch.randn(6, 17, dtype=torch.bfloat16)
    outputs = type("Outputs", (), {"logits": logits})
    p, y = logits.double().sigmoid(), batch["labels"].double()
    expected = -(y * p.log() + (1 - y) * (1 - p).log()).mean()
    assert task.loss(outputs, batch).item() == pytest.approx(expected.item(), abs=1e-5)
    assert [one.shape for one in task.predict(outputs, batch)] == [(6, 17), (6, 17)]


def test_the_real_reports(gaiic_data, make_task):
    splits = make_task("gaiic", data_dir=str(gaiic_data)).splits
    assert len(splits.train) + len(splits.validation) == 8000 and len(splits.test) == 2000
    assert 700 < len(splits.validation) < 900
    assert sum(not label for label in splits.train["label"]) / len(splits.train) == pytest.approx(0.26, abs=0.02)
