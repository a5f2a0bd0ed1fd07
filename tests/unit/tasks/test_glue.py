import os
from pathlib import Path

import pytest

from keepfrac.errors import DataMissing, UserError
from keepfrac.tasks.data.glue import LAYOUTS, read_glue
from keepfrac.tasks.data.labels import to_rows
from tests.unit.tasks.conftest import FIXTURES
from tests.unit.tasks.test_hub_task import Column, Part

ODD = ["null", "NA", 'he said "stop and left', "café — naïve", '"', "one\u2028two", "nan"]


def read(name, file):
    table, left_out = read_glue(FIXTURES / LAYOUTS[name].folder / file, LAYOUTS[name])
    return to_rows(table, LAYOUTS[name].raw, LAYOUTS[name].limits), left_out


def test_every_task_of_glue_has_a_layout_and_a_yaml():
    assert set(LAYOUTS) == {"cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"}


@pytest.mark.parametrize("name", LAYOUTS)
def test_odd_texts_arrive_unchanged(name):
    rows, _ = read(name, "train.tsv")
    assert len(rows) == 40
    assert [text.rstrip(" ?") for text in rows["text"][: len(ODD)]] == ODD
    assert all(text and "\r" not in text for column in rows.columns if column != "label" for text in rows[column])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cola", [0, 1, 0, 1]), ("sst2", [0, 1, 0, 1]), ("mrpc", [0, 1, 1, 0]), ("stsb", [0.0, 1.0, 2.0, 3.0]),
        ("qqp", [0, 1, 0, 1]), ("mnli", [1, 0, 2, 1]), ("qnli", [0, 1, 0, 1]), ("rte", [0, 1, 0, 1]),
        ("wnli", [0, 1, 0, 1]),
    ],
)  # fmt: skip
def test_labels_have_the_numbers_of_the_hub(name, expected):
    assert read(name, "train.tsv")[0]["label"][:4] == expected


def test_broken_and_unlabelled_rows_are_left_out_and_counted():
    assert [read("qqp", "train.tsv")[1], read("qqp", "dev.tsv")[1]] == [2, 2]
    assert read("mnli", "dev_mismatched.tsv")[1] == 1
    assert read("mnli", "dev_matched.tsv")[1] == 0


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_task_by_folder(make_task, name, tokenizer):
    task = make_task(name, data_dir=str(FIXTURES))
    task.use(tokenizer)
    task.setup()
    described = task.describe()
    assert described["rows"]["train"] + described["rows"]["val"] == 40
    assert "dev set" in described["splits"]
    assert described["source"] == f"folder {FIXTURES / task.layout.folder}"
    batch = next(iter(task.train_dataloader()))
    assert batch["input_ids"].shape[0] == 4
    assert set(task.metrics("val").keys()) >= {task.best_metric}
    train, validation = set(task.splits.train["text"]), set(task.splits.validation["text"])
    assert not train & validation


def as_hub(name):
    """The fixture's rows as the hub gives them."""
    layout = LAYOUTS[name]
    wanted = {"train": ("train.tsv", "train"), **layout.tests}
    offered = {}
    for file, split in wanted.values():
        rows, _ = read(name, file)
        offered[split] = Part({layout.hub_columns[key]: Column(values) for key, values in rows.columns.items()})
    return offered


@pytest.mark.parametrize("name", LAYOUTS)
def test_hub_and_folder_give_the_same_data(make_task, name, on_the_hub):
    asked = on_the_hub(as_hub(name))
    task = make_task(name)
    assert task.describe()["source"] == f"hub nyu-mll/glue, {name}"
    assert task.fingerprint() == make_task(name, data_dir=str(FIXTURES)).fingerprint()
    assert asked == [("nyu-mll/glue", name, {})]


def test_mrpc_has_a_labelled_test_set(make_task):
    dev, official = (make_task("mrpc", data_dir=str(FIXTURES), test=test) for test in ("dev", "official"))
    assert (len(dev.splits.test), len(official.splits.test)) == (10, 14)
    assert official.describe()["splits"].startswith("test is the labelled test set of the corpus")
    assert dev.splits.train == official.splits.train
    assert dev.fingerprint() != official.fingerprint()


def test_mnli_has_two_dev_sets_of_which_one_may_be_absent(make_task, tmp_path):
    both = make_task("mnli", data_dir=str(FIXTURES))
    assert both.describe()["rows"]["mismatched"] == 12
    assert both.describe()["left_out"] == {"dev_mismatched.tsv": 1}
    folder = tmp_path / "MNLI"
    folder.mkdir()
    for file in ("train.tsv", "dev_matched.tsv"):
        (folder / file).write_bytes((FIXTURES / "MNLI" / file).read_bytes())
    one = make_task("mnli", data_dir=str(tmp_path))
    assert one.describe()["mismatched"] == "absent: dev_mismatched.tsv is not in the folder"
    assert one.extra_dataloaders() == {}
    alone = make_task("mnli", data_dir=str(FIXTURES), test="mismatched")
    assert alone.splits.test == both.splits.extra["mismatched"]
    with pytest.raises(DataMissing, match=r"dev_mismatched\.tsv: no such file"):
        make_task("mnli", data_dir=str(tmp_path), test="mismatched").fingerprint()


def test_a_folder_of_another_name(make_task, tmp_path):
    (tmp_path / "RTE-derived").symlink_to(FIXTURES / "RTE")
    task = make_task("rte", data_dir=str(tmp_path), folder="RTE-derived")
    assert task.fingerprint() == make_task("rte", data_dir=str(FIXTURES)).fingerprint()
    assert "need not be GLUE's own split" in task.describe()["splits"]
    with pytest.raises(DataMissing, match=r"task\.folder needs it; type task\.data_dir="):
        make_task("rte", folder="RTE-derived").fingerprint()


def test_without_a_source_one_error_says_what_to_type(make_task, monkeypatch):
    with pytest.raises(DataMissing) as caught:
        make_task("mrpc").fingerprint()
    message = str(caught.value)
    assert "the model hub (nyu-mll/glue) does not answer" in message
    assert "task.data_dir=<your glue_data folder that holds MRPC/>" in message
    assert "GLUE_DATA" in message
    monkeypatch.setenv("GLUE_DATA", str(FIXTURES))
    assert len(make_task("mrpc").splits.test) == 10


def test_a_missing_file_names_what_there_is(make_task, tmp_path):
    (tmp_path / "SST-2").mkdir()
    (tmp_path / "SST-2" / "dev.tsv").touch()
    with pytest.raises(DataMissing, match=r"train\.tsv: no such file; .*SST-2 holds dev\.tsv"):
        make_task("sst2", data_dir=str(tmp_path)).fingerprint()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("sst2", "text\tlabel\nx\t1\n", "line 1: no column 'sentence'; there are text, label"),
        ("sst2", "sentence\tlabel\nx\t2\n", "line 2: label '2'; allowed are 0, 1"),
        ("sst2", "sentence\tlabel\nx\n", "line 2: 1 columns; allowed are 2"),
        ("sst2", "", "line 1: no column 'sentence'; there are none"),
        ("cola", "gj04\t1\t\n", "line 1: 3 columns; allowed are 4"),
        ("stsb", "sentence1\tsentence2\tscore\na\tb\t5.1\n", "line 2: score '5.1'; allowed is a number from 0 to 5"),
        ("sst2", "sentence\tlabel\n", "the train split is empty"),
    ],
)
def test_what_is_wrong_is_said_with_file_and_line(make_task, tmp_path, name, content, message):
    folder = tmp_path / LAYOUTS[name].folder
    folder.mkdir()
    for file in ("train.tsv", "dev.tsv"):
        (folder / file).write_text(content)
    with pytest.raises(UserError) as caught:
        make_task(name, data_dir=str(tmp_path)).fingerprint()
    assert message in str(caught.value)


REAL = {  # rows of train and validation together, and of test
    "sst2": (67_349, 872),
    "mrpc": (3_668, 408),
    "stsb": (5_749, 1_500),
    "wnli": (635, 71),
    "qnli": (4_463, 1_000),
    "mnli": (7_998, 1_817),
}
DATA = os.environ.get("GLUE_DATA")


@pytest.mark.skipif(DATA is None, reason="GLUE_DATA is not set to a glue_data folder")
@pytest.mark.parametrize("name", REAL)
def test_real_data(make_task, name):
    derived = {"qnli": "QNLI-derived", "mnli": "MNLI-derived"}.get(name)
    folder = Path(str(DATA)) / (derived or LAYOUTS[name].folder)
    if not (folder / "train.tsv").is_file():
        pytest.skip(f"{folder} holds no train.tsv")
    rows = make_task(name, data_dir=DATA, folder=derived).describe()["rows"]
    assert (rows["train"] + rows["val"], rows["test"]) == REAL[name]
    assert rows["val"] <= 5_000
    assert abs(rows["val"] / min(50_000, rows["train"] + rows["val"]) - 0.1) < 0.02
