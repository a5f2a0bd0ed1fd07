"""Questions and windows: reading, strides, answers in windows, spans and scores."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from keepfrac.errors import DataMissing, UserError
from keepfrac.tasks.data.squad import read_squad
from keepfrac.tasks.metrics.answers import AnswerScores, best_spans
from keepfrac.tasks.question_answering import NO_ANSWER

CONTEXT = "the red door the red room two apples it is good a map the box is bad"


def squad(folder, *asked, name="squad.json"):
    """A file of (question, answer or None) on CONTEXT."""
    qas = [
        {
            "id": str(number),
            "question": question,
            "answers": [] if answer is None else [{"text": answer, "answer_start": CONTEXT.index(answer)}],
            "is_impossible": answer is None,
        }
        for number, (question, answer) in enumerate(asked)
    ]
    path = folder / name
    path.write_text(json.dumps({"data": [{"paragraphs": [{"context": CONTEXT, "qas": qas}]}]}))
    return str(path)


def one_question(question="who", context="a map", answer="map", start=2):
    """The json of one question whose values can be anything."""
    asked = {"id": 0, "question": question, "answers": [{"text": answer, "answer_start": start}]}
    return json.dumps({"data": [{"paragraphs": [{"context": context, "qas": [asked]}]}]})


def task_of(make_task, path, **settings):
    sizes = {"max_length": 16, "stride": 3, "longest_question": 4, "longest_answer": 4}
    files = {"train_file": path}
    for split in ("validation", "test"):
        other = Path(path).with_name(f"{split}.json")
        other.write_text(Path(path).read_text().replace(CONTEXT, f"{CONTEXT} {split}"))
        files[f"{split}_file"] = str(other)
    return make_task("qa", **{**sizes, **files, **settings})


def test_windows_overlap_and_hold_the_answer(make_task, tmp_path, tokenizer):
    task = task_of(make_task, squad(tmp_path, ("is it good", "good"), ("the map", "two apples")))
    task.use(tokenizer)
    data = task.encoded("train")
    assert len(data) > len(task.splits.train) == 2
    assert task.batches_per_epoch(1) == max(1, len(data) // 4)
    found = {0: 0, 1: 0}
    for window in range(len(data)):
        ids, types, question, (first, last), offsets = data[window]
        assert len(ids) <= 16 and len(ids) == len(types) == len(offsets)
        context = [CONTEXT[a:b] for a, b in offsets if b > a]
        assert context == tokenizer.convert_ids_to_tokens([i for i, (a, b) in zip(ids, offsets, strict=True) if b > a])
        if (first, last) != NO_ANSWER:
            found[question] += 1
            assert CONTEXT[offsets[first][0] : offsets[last][1]] == ("good", "two apples")[question]
    assert all(found.values())


def test_a_question_is_shortened_by_tokens_not_by_characters(make_task, tmp_path):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["[PAD]", "[CLS]", "[SEP]", *alphabet])}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    bytewise = PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=64, **special)
    task = task_of(make_task, squad(tmp_path, ("\u4e2d\u6587", "good")))  # 2 characters, 6 tokens
    task.use(bytewise)
    ids = task.encoded("train")[0][0]
    assert list(ids).index(2) == 1 + 3  # [CLS], one character (longest_question=4), [SEP]


def test_loss_and_perfect_answers(make_task, tmp_path, tokenizer):
    task = task_of(make_task, squad(tmp_path, ("is it good", "good"), ("the map", "two apples")))
    task.use(tokenizer)
    data = task.encoded("train")
    batch = task.collate([data[i] for i in range(len(data))])
    hot = torch.nn.functional.one_hot(batch["labels"], batch["input_ids"].shape[1]).float() * 50
    outputs = SimpleNamespace(start_logits=hot[:, 0], end_logits=hot[:, 1])
    assert float(task.loss(outputs, batch)) < 1e-6
    scores = task.metrics("test")
    scores.update(*task.predict(outputs, batch))
    assert {name: float(value) for name, value in scores.compute().items()} == {"f1": 1, "exact_match": 1}
    assert set(task.inputs(batch)) == {"input_ids", "attention_mask", "token_type_ids"}


def test_padding_has_no_part_in_the_loss(make_task, tmp_path, tokenizer):
    task = task_of(make_task, squad(tmp_path, ("is it good", "good"), ("the map", "two apples")))
    task.use(tokenizer)
    data = task.encoded("train")
    whole = task.collate([data[i] for i in range(len(data))])
    logits = torch.randn(*whole["input_ids"].shape, 2, generator=torch.Generator().manual_seed(0))
    losses = task.row_losses(SimpleNamespace(start_logits=logits[..., 0], end_logits=logits[..., 1]), whole)
    for row in range(len(data)):
        alone, length = task.collate([data[row]]), int(whole["attention_mask"][row].sum())
        some = logits[row : row + 1, :length]
        one = task.row_losses(SimpleNamespace(start_logits=some[..., 0], end_logits=some[..., 1]), alone)
        torch.testing.assert_close(one[0], losses[row])


def test_no_answer_where_the_first_token_is_likelier(make_task, tmp_path, tokenizer):
    path = squad(tmp_path, ("is it good", None))
    with pytest.raises(UserError, match=r"question 0 has no answer .*task\.unanswerable=true"):
        task_of(make_task, path).splits  # noqa: B018
    task = task_of(make_task, path, unanswerable=True)
    task.use(tokenizer)
    data = task.encoded("train")
    batch = task.collate([data[i] for i in range(len(data))])
    logits = torch.zeros(batch["input_ids"].shape)
    logits[:, 7] = 1  # "door": "the" alone would be nothing to the score
    for first, right in ((5.0, 1.0), (-5.0, 0.0)):
        logits[:, 0] = first
        scores = task.metrics("test")
        scores.update(*task.predict(SimpleNamespace(start_logits=logits, end_logits=logits), batch))
        assert scores.compute()["exact_match"] == right


def test_best_spans_are_those_of_a_plain_loop():
    draw = torch.Generator().manual_seed(1)
    starts, ends = torch.randn(20, 7, generator=draw), torch.randn(20, 7, generator=draw)
    allowed = torch.rand(20, 7, generator=draw) > 0.3
    score, first, last = best_spans(starts, ends, allowed, 3)
    for row in range(20):
        pairs = [(i, j) for i in range(7) for j in range(i, min(i + 3, 7)) if allowed[row, i] and allowed[row, j]]
        best = max(pairs, key=lambda pair: starts[row, pair[0]] + ends[row, pair[1]])
        assert (int(first[row]), int(last[row])) == best
        torch.testing.assert_close(score[row], starts[row, best[0]] + ends[row, best[1]])


def test_the_best_window_of_a_question_answers():
    texts = {(0, 3): "the", (4, 8): "door", (0, 0): ""}
    scores = AnswerScores(("f1", "exact_match"), lambda number, first, end: (texts[first, end], ["The door!"]))
    none = -torch.inf
    scores.update(torch.tensor([[1.0, none, 0, 3]]), torch.tensor([7]))
    scores.update(torch.tensor([[2.0, none, 4, 8]]), torch.tensor([7]))
    found = scores.compute()
    assert (float(found["f1"]), float(found["exact_match"])) == (1, 1)  # articles, case and punctuation do not count


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "not JSON"),
        ('{"data": 3}', "wanted is SQuAD's json"),
        ('{"data": []}', "holds no question"),
        ("[]", "wanted is SQuAD's json"),
        ("[" * 100_000, "not JSON that can be read"),
        (one_question(question=None), "question 0: question holds None"),
        (one_question(context=5), "question 0: context holds 5"),
        (one_question(answer=5), "question 0: answer holds 5"),
        (one_question(answer=""), "question 0: an answer without text"),
        (one_question(start="x"), "wanted is SQuAD's json"),
    ],
)
def test_refuses_another_file(tmp_path, content, says):
    path = tmp_path / "squad.json"
    path.write_text(content)
    with pytest.raises(UserError) as error:
        read_squad(path)
    assert says in str(error.value) and "squad.json" in str(error.value)


def test_refuses_an_answer_that_is_not_there(tmp_path):
    path = tmp_path / "squad.json"
    squad(tmp_path, ("is it good", "good"))
    path.write_text(path.read_text().replace('"text": "good"', '"text": "gold"'))
    with pytest.raises(UserError, match=r"question 0: the answer 'gold' does not stand at character"):
        read_squad(path)


def test_refuses(make_task, tmp_path, monkeypatch):
    monkeypatch.setenv("KEEPFRAC_HUB", "offline")
    with pytest.raises(DataMissing, match=r"type task\.train_file="):
        make_task("qa", max_length=384).splits  # noqa: B018
    with pytest.raises(DataMissing, match=r"rajpurkar/squad\) does not answer"):
        make_task("squad", max_length=384).splits  # noqa: B018
    with pytest.raises(UserError, match=r"task\.stride=128.*allowed is less than"):
        make_task("qa", max_length=150)
    with pytest.raises(UserError, match=r"task\.max_length=3: allowed is more than 196"):
        make_task("qa", max_length=3)


@pytest.mark.skipif("XQUAD_DATA" not in os.environ, reason="XQUAD_DATA names no folder with xquad.en.json")
def test_real_questions(make_task, tokenizer):
    path = str(Path(os.environ["XQUAD_DATA"]) / "xquad.en.json")
    task = make_task("qa", train_file=path, max_length=384)
    assert sum(task.describe()["rows"].values()) == 1190
    splits = task.splits
    assert not set(splits.train["text_pair"]) & set(splits.test["text_pair"])
