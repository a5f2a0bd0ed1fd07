"""Tagged words: reading, schemes, first tokens, loss and scores, against conlleval's own rules written out."""

import json
import os
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from keepfrac.errors import DataMissing, UserError
from keepfrac.tasks.data.conll import names_of, read_tagged, to_bio
from keepfrac.tasks.masking import IGNORED
from keepfrac.tasks.metrics.entities import END, EntityScores, entities
from keepfrac.tasks.token_task import LOST, first_tokens

CONLL = "the\tO\nred\tB-thing\ndoor\tI-thing\n\ntwo O\napples B-fruit\n\nit\tO\nis\tO\ngood\tO\n"


OTHER_LAST = {"train": "O", "validation": "B-thing", "test": "B-fruit"}
"""The last tag of each split: no one is a copy of another."""


def write(folder, text=CONLL, name="train.conll"):
    path = folder / name
    path.write_text(text)
    return path


def task_of(make_task, tmp_path, tokenizer, text=CONLL, **settings):
    files = {
        f"{split}_file": str(write(tmp_path, text.replace("good\tO", f"good\t{tag}"), f"{split}.conll"))
        for split, tag in OTHER_LAST.items()
    }
    task = make_task("ner", **files, **settings)
    task.use(tokenizer)
    return task


def conlleval(tags):
    """The chunks of a sentence by the two tables of the CoNLL-2000 script, word by word."""
    found, before, kind_before, start = set(), "O", "", 0
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, kind = tag.partition("-")
        ends = before != "O" and (prefix in "BO" or kind != kind_before)
        begins = prefix == "B" or (prefix == "I" and (before == "O" or kind != kind_before))
        if ends:
            found.add((start, place, kind_before))
        if begins:
            start = place
        before, kind_before = prefix, kind
    return found


def test_entities_are_those_of_conlleval():
    draw = random.Random(0)
    tags = ["O", "B-a", "I-a", "B-b", "I-b"]
    for _ in range(2_000):
        sentence = draw.choices(tags, k=draw.randint(0, 9))
        assert entities(sentence) == conlleval(sentence), sentence


def test_scores_over_a_set():
    names = names_of({"B-a", "I-a", "B-b"})
    assert names == ("O", "B-a", "I-a", "B-b", "I-b")
    true = ["O", "B-a", "I-a", "O", None, "B-b", "O", "B-a", None]
    called = ["O", "B-a", "I-a", "B-b", None, "B-b", "O", "B-b", None]
    scores = EntityScores(("f1", "precision", "recall", "f1_macro", "word_accuracy"), names)
    number = {name: i for i, name in enumerate(names)} | {None: END}
    for part in (slice(0, 5), slice(5, 9)):  # a sentence a batch
        scores.update(*(torch.tensor([number[tag] for tag in some[part]]) for some in (called, true)))
    found = {name: float(value) for name, value in scores.compute().items()}
    assert found == pytest.approx(
        {
            "precision": 2 / 4,
            "recall": 2 / 3,
            "f1": 4 / 7,
            "f1_macro": (2 / 3 + 1 / 2) / 2,
            "word_accuracy": 5 / 7,
            "f1_of_a": 2 / 3,
            "f1_of_b": 1 / 2,
        }
    )


def test_two_sentences_are_never_one_entity():
    scores = EntityScores(("f1",), ("O", "B-a", "I-a"))
    scores.update(torch.tensor([1, END, 2, END]), torch.tensor([1, END, 1, END]))  # a stray I- begins an entity
    assert scores.compute()["f1"] == 1


@pytest.mark.parametrize(
    ("given", "plain", "repaired"),
    [
        ("O B-a I-a B-a", "O B-a I-a B-a", 0),
        ("I-a I-a O I-b", "B-a I-a O B-b", 2),  # IOB1, or a mistake
        ("B-a I-b", "B-a B-b", 1),
        ("S-a B-b I-b E-b", "B-a B-b I-b I-b", 0),  # IOBES
        ("U-a B-b L-b", "B-a B-b I-b", 0),  # BILOU
        ("S-a I-a", "B-a B-a", 1),
        ("E-a", "B-a", 1),
    ],
)
def test_every_scheme_becomes_bio(given, plain, repaired):
    tags = given.split()
    assert to_bio(tags, ["here"] * len(tags)) == (plain.split(), repaired)
    assert entities(plain.split()) == conlleval([tag.replace("E-", "I-").replace("L-", "I-") for tag in plain.split()])


def test_reads_columns_and_jsonl_alike(tmp_path):
    columns = read_tagged(write(tmp_path, "-DOCSTART- -X- O O\n\n" + CONLL.replace("\t", " NN ")))
    rows = [{"tokens": one.words, "ner_tags": one.tags} for one in columns.sentences]
    lines = read_tagged(write(tmp_path, "\n".join(map(json.dumps, rows)), "train.jsonl"))
    assert [(one.words, one.tags) for one in lines.sentences] == [(one.words, one.tags) for one in columns.sentences]
    assert columns.sentences[0].words == ["the", "red", "door"]
    assert len(columns.sentences) == 3


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.conll", "red\tB-x\nword\n", "line 2: 'word'; wanted are a word and its tag"),
        ("a.conll", "red\tX-y\n", "line 1: tag 'X-y'; allowed are O, and B-"),
        ("a.conll", "red\tB\n", "line 1: tag 'B'; allowed"),
        ("a.conll", "\n\n", "holds no sentence"),
        ("a.jsonl", '{"tokens": ["a", "b"], "tags": ["O"]}', "line 1: 2 tokens and 1 tags"),
        ("a.jsonl", '{"tokens": "a b", "tags": ["O"]}', "line 1: tokens holds"),
        ("a.jsonl", '{"tokens": ["a"]}', "line 1: tags holds null"),
        ("a.jsonl", '{"tokens": ["a"], "tags": [3]}', "line 1: tags holds [3]"),
    ],
)
def test_refuses_a_file_by_line(tmp_path, name, text, says):
    with pytest.raises(UserError) as error:
        read_tagged(write(tmp_path, text, name))
    assert says in str(error.value) and name in str(error.value)


def test_refuses_types_that_training_has_not(make_task, tmp_path):
    test = write(tmp_path, "song B-music\n", "test.conll")
    train = write(tmp_path)
    with pytest.raises(UserError, match=r"test.conll, line 1: type 'music' is not among .* fruit, thing"):
        make_task("ner", train_file=str(train), validation_file=str(train), test_file=str(test)).splits  # noqa: B018


def test_refuses_a_training_set_without_entities(make_task, tmp_path):
    with pytest.raises(UserError, match="every tag is O"):
        make_task("ner", train_file=str(write(tmp_path, "a O\n"))).splits  # noqa: B018


def test_says_where_sentences_come_from(make_task, tmp_path, monkeypatch):
    with pytest.raises(DataMissing, match=r"type task.train_file="):
        make_task("ner").splits  # noqa: B018
    monkeypatch.setenv("KEEPFRAC_HUB", "offline")
    monkeypatch.delenv("WNUT17_DATA", raising=False)
    with pytest.raises(DataMissing, match=r"task.data_dir=<your folder that holds wnut17train.conll"):
        make_task("wnut17").splits  # noqa: B018
    with pytest.raises(DataMissing, match=r"no wnut17train\.conll, emerging\.dev\.conll"):
        make_task("wnut17", data_dir=str(tmp_path)).splits  # noqa: B018


def test_reads_a_folder_and_the_hub_alike(make_task, tmp_path, on_the_hub, monkeypatch):
    monkeypatch.delenv("WNUT17_DATA", raising=False)
    names = ("wnut17train.conll", "emerging.dev.conll", "emerging.test.annotated")
    for name, tag in zip(names, OTHER_LAST.values(), strict=True):
        write(tmp_path, CONLL.replace("good\tO", f"good\t{tag}"), name)
    local = make_task("wnut17", data_dir=str(tmp_path)).splits
    names = [*reversed(local.labels)]
    feature = SimpleNamespace(feature=SimpleNamespace(names=names))

    class Part(dict):
        column_names = ("tokens", "ner_tags")
        features = {"ner_tags": feature}  # noqa: RUF012

    def part(rows):
        numbers = [[names.index(local.labels[tag]) for tag in row] for row in rows["label"]]
        return Part(tokens=rows["words"], ner_tags=numbers)

    asked = on_the_hub({"train": part(local.train), "validation": part(local.validation), "test": part(local.test)})
    assert make_task("wnut17").splits.fingerprint() == local.fingerprint()
    assert asked[0][0] == "leondz/wnut_17"


def test_first_tokens_of_words():
    # "ab c  de": the second word is one that the tokenizer drops; tokens with and without the blank before them
    offsets = np.array([(0, 0), (0, 1), (1, 2), (4, 7), (6, 8), (0, 0)])
    assert first_tokens(["ab", "c", "xyz"], offsets).tolist() == [1, LOST, 3]


def test_batches_and_loss(make_task, tmp_path, tokenizer):
    task = task_of(make_task, tmp_path, tokenizer, CONLL.replace("door", "door-box"))
    data = task.encoded("train")
    batch = task.collate([data[i] for i in range(len(data))])
    names = task.labels
    first = [tokenizer.convert_ids_to_tokens(int(i)) for i in batch["input_ids"][batch["labels"] != IGNORED]]
    assert first == ["the", "red", "door", "two", "apples", "it", "is", "good"]  # not "-" and "box"
    logits = torch.randn(*batch["labels"].shape, len(names), generator=torch.Generator().manual_seed(0))
    outputs = SimpleNamespace(logits=logits)
    wanted = cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), ignore_index=IGNORED)
    torch.testing.assert_close(task.loss(outputs, batch), wanted)
    torch.testing.assert_close(task.row_losses(outputs, batch).sum() / 8, wanted)
    assert task.num_loss_terms(batch) == 8
    right = SimpleNamespace(logits=torch.nn.functional.one_hot(batch["labels"].clamp(min=0), len(names)).float())
    called, true = task.predict(right, batch)
    assert called.tolist() == true.tolist() and (true == END).sum() == 3
    assert set(task.inputs(batch)) == {"input_ids", "attention_mask", "token_type_ids"}


def test_words_that_are_cut_off_count_as_missed(make_task, tmp_path, tokenizer):
    task = task_of(make_task, tmp_path, tokenizer, max_length=4)  # [CLS] the red [SEP]
    data = task.encoded("test")
    batch = task.collate([data[0]])
    right = SimpleNamespace(logits=torch.nn.functional.one_hot(batch["labels"].clamp(min=0), 5).float())
    called, true = task.predict(right, batch)
    tags = task.labels
    assert [tags[i] for i in true[:-1]] == ["O", "B-thing", "I-thing"]
    assert [tags[i] for i in called[:-1]] == ["O", "B-thing", "O"]
    assert task.describe()["truncated"]["test"] == 2
    assert "positive" not in task.describe()  # F1 is of entities, not of one tag


def test_no_class_of_tags_is_called_positive(make_task, tmp_path, tokenizer):
    assert "positive" not in task_of(make_task, tmp_path, tokenizer).describe()  # f1 is of entities here


def test_counts_what_was_repaired(make_task, tmp_path, tokenizer):
    task = task_of(make_task, tmp_path, tokenizer, CONLL.replace("B-fruit", "I-fruit"))
    assert task.describe()["tags_repaired"] == {"train": 1, "validation": 1, "test": 1}


@pytest.mark.skipif("WNUT17_DATA" not in os.environ, reason="WNUT17_DATA names no folder with the corpus")
def test_the_corpus_as_it_was_published(make_task):
    task = make_task("wnut17")
    rows, splits = task.describe()["rows"], task.splits
    assert rows == {"train": 3394, "val": 1009, "test": 1287}
    assert {name[2:] for name in task.labels[1:]} == {
        *("corporation", "creative-work", "group", "location", "person", "product")
    }
    tags = [[task.labels[tag] for tag in row] for row in splits.test["label"]]
    assert sum(len(entities(row)) for row in tags) == sum(len(conlleval(row)) for row in tags) == 1079
