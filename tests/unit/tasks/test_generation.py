import json
import re
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel

from keepfrac.errors import DataMissing, UserError
from keepfrac.tasks.data import hub_data
from keepfrac.tasks.generation import NO_LOSS
from keepfrac.tasks.prompts import end_token, write
from tests.unit.tasks.conftest import word_tokenizer

E2E = Path(__file__).resolve().parents[2] / "fixtures" / "e2e"
WORDS = sorted({word for file in E2E.glob("*.csv") for word in re.findall(r"\w+|[^\w\s]+", file.read_text())})
WORDS += ["Text", ":", "]", "],"]
PAD, UNK, CLS, SEP = range(4)


@pytest.fixture(autouse=True)
def no_folder(monkeypatch):
    for name in ("E2E_DATA", "DART_DATA", "WEBNLG_DATA"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def e2e(make_task):
    def make(use=True, **overrides):
        task = make_task("e2e", **{"data_dir": str(E2E), "max_length": 48, "max_new_tokens": 16} | overrides)
        if use:
            task.use(word_tokenizer(WORDS, inputs=("input_ids", "attention_mask")))
        return task

    return make


def tiny_net():
    ends = {"bos_token_id": CLS, "eos_token_id": SEP, "pad_token_id": PAD}
    config = GPT2Config(vocab_size=len(WORDS) + 4, n_embd=16, n_layer=1, n_head=2, n_positions=64, **ends)
    return GPT2LMHeadModel(config).eval()


def test_a_training_row_is_a_reference_and_an_evaluation_row_a_meaning(e2e):
    task = e2e(use=False)
    rows = {split: len(rows) for split, rows in task.splits.named().items()}
    assert rows == {"train": 48, "val": 6, "test": 6}
    assert task.labels is None and task.splits.source == f"folder {E2E}"
    numbers = [*task.splits.validation["number"], *task.splits.test["number"]]
    assert numbers == list(range(12))
    for rows in (task.splits.validation, task.splits.test):
        for number, references in zip(rows["number"], rows["references"], strict=True):
            assert task.references(number) == references and len(references) == 2
    assert len(e2e(use=False, rows=10).splits.train) == 10
    described = task.describe()
    assert described["meanings"] == {"train": 24, "validation": 6, "test": 6}
    assert "num_beams=4" in described["generated"]


def test_eval_examples_bounds_the_meanings_the_same_for_every_seed(e2e):
    few, again = (e2e(use=False, eval_examples=2, seed=seed) for seed in (1, 2))
    assert len(few.splits.validation) == len(few.splits.test) == 2
    assert few.splits.validation["text"] == again.splits.validation["text"]
    assert few.fingerprint() == again.fingerprint() != e2e(use=False).fingerprint()
    assert len(e2e(use=False, eval_examples=100).splits.test) == 6


def test_the_folder_may_come_from_the_environment(e2e, monkeypatch):
    monkeypatch.setenv("E2E_DATA", str(E2E))
    assert len(e2e(use=False, data_dir=None).splits.train) == 48


def test_the_hubs_copy_without_a_script_is_read(e2e, on_the_hub):
    record = {"meaning_representation": "name[A]", "human_reference": "A is here."}
    asked = on_the_hub({split: [record] for split in ("train", "validation", "test")})
    task = e2e(use=False, data_dir=None)
    assert task.splits.source == "hub tuetschek/e2e_nlg, refs/convert/parquet"
    assert asked == [("tuetschek/e2e_nlg", None, {"revision": "refs/convert/parquet"})]
    assert task.splits.test["references"] == [["A is here."]]


def test_a_script_data_set_and_no_hub_name_the_folder(e2e, on_the_hub, monkeypatch):
    on_the_hub(RuntimeError("Dataset scripts are no longer supported, but found e2e_nlg.py"))
    with pytest.raises(UserError, match=r"no longer supported.*task.data_dir=<your folder with trainset.csv"):
        e2e(use=False, data_dir=None).splits  # noqa: B018
    monkeypatch.setattr(hub_data, "hub_answers", lambda: False)
    monkeypatch.setattr(hub_data, "in_cache", lambda *_: False)
    with pytest.raises(DataMissing, match=r"does not answer; type task.data_dir=.*E2E_DATA"):
        e2e(use=False, data_dir=None).splits  # noqa: B018


@pytest.mark.parametrize("name", ["dart", "webnlg"])
def test_the_other_corpora_are_the_same_class(make_task, tmp_path, name):
    entry = {"tripleset": [["a", "is", "b"]], "annotations": [{"text": "a is b"}]}
    if name == "webnlg":
        entry = {"input": ["a | is | b"], "references": ["a is b"], "target": ""}
    task = make_task(name, data_dir=str(tmp_path), max_new_tokens=8)
    for split, file in task.layout.files.items():
        (tmp_path / file).write_text(json.dumps([entry] * (1 + (split == "train"))))
    assert task.splits.train["text"] == ["a : is : b"] * 2
    assert task.splits.test["references"] == [["a is b"]]
    assert task.describe()["meanings_without_references"] == {"train": 0, "validation": 0, "test": 0}


def test_meanings_without_a_good_reference_are_counted_in_the_account(make_task, tmp_path):
    task = make_task("dart", data_dir=str(tmp_path), max_new_tokens=8)
    good = {"tripleset": [["a", "is", "b"]], "annotations": [{"text": "a is b"}]}
    refused = {"tripleset": [["c", "is", "d"]], "annotations": [{"text": "c", "comment": "toFix"}]}
    again = good | {"annotations": refused["annotations"]}  # said elsewhere: not lost
    for split, file in task.layout.files.items():
        (tmp_path / file).write_text(json.dumps([good, again] + [refused] * (2 * (split == "test"))))
    described = task.describe()
    assert described["meanings"] == {"train": 1, "validation": 1, "test": 1}
    assert described["meanings_without_references"] == {"train": 0, "validation": 0, "test": 1}


def test_the_prompt_keeps_what_stands_first_and_the_text_ends_with_the_end_token():
    tokenizer = word_tokenizer(["a", "b", ":", "c", "d"])
    assert end_token(tokenizer) == SEP
    prompts, texts, truncated = write(tokenizer, ["a b :", "a :"], ["c d", "d"], 8, 8)
    assert [p.tolist() for p in prompts] == [[CLS, 4, 5, 6], [CLS, 4, 6]]
    assert [t.tolist() for t in texts] == [[7, 8, SEP], [8, SEP]] and truncated == 0


def test_a_long_prompt_loses_its_beginning_and_a_long_text_its_end():
    tokenizer = word_tokenizer(["a", "b", ":", "c", "d"])
    (prompt,), (text,), truncated = write(tokenizer, ["a a a b :"], ["c d c d"], 3, 3)
    assert prompt.tolist() == [4, 5, 6] and text.tolist() == [7, 8, 7] and truncated == 1


def test_a_tokenizer_without_an_end_is_refused():
    class Endless:
        eos_token_id = sep_token_id = None

    with pytest.raises(UserError, match="no token that ends a text"):
        end_token(Endless())


def test_loss_stands_on_the_reference_and_its_end_alone(e2e):
    task = e2e()
    batch = next(iter(task.train_dataloader()))
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
        counted = labels != NO_LOSS
        first, length = int(counted.nonzero()[0]), int(mask.sum())
        assert ids[0] == CLS and counted[first:length].all() and not counted[length:].any()
        assert torch.equal(ids[counted], labels[counted]) and labels[length - 1] == SEP
        said = task.tokenizer.decode(labels[first : length - 1])
        assert any(said == " ".join(task.tokenizer.tokenize(one)) for one in task.splits.train["reference"])


def test_the_loss_is_the_mean_over_reference_tokens(e2e):
    task, net = e2e(), tiny_net()
    batch = next(iter(task.train_dataloader()))
    outputs = net(**task.inputs(batch))
    outputs.logits.retain_grad()
    by_hand, tokens = 0.0, 0
    for row, labels in zip(outputs.logits, batch["labels"], strict=True):
        for place in (labels != NO_LOSS).nonzero().flatten().tolist():
            by_hand, tokens = by_hand + cross_entropy(row[place - 1], labels[place]), tokens + 1
    loss = task.loss(outputs, batch)
    assert loss.item() == pytest.approx((by_hand / tokens).item(), rel=1e-5)
    assert task.num_loss_terms(batch) == tokens
    loss.backward()
    reached = outputs.logits.grad.abs().sum(-1) > 0
    assert torch.equal(reached[:, :-1], batch["labels"][:, 1:] != NO_LOSS) and not reached[:, -1].any()
    smoothed = e2e(label_smoothing=0.5)
    assert smoothed.loss(outputs, batch) != task.loss(outputs, batch)
    with torch.no_grad():
        assert smoothed.loss(outputs, batch) == task.loss(outputs, batch)


def test_an_end_token_that_also_pads_is_learnt_and_padding_is_not(e2e):
    task = e2e(use=False)
    tokenizer = word_tokenizer(WORDS, inputs=("input_ids", "attention_mask"))
    tokenizer.pad_token = None
    task.use(tokenizer)
    data = task.encoded("train")
    batch = task.collate([data[int(data.lengths.argmin())], data[int(data.lengths.argmax())]])
    padded = batch["attention_mask"] == 0
    assert padded.any() and (batch["input_ids"][padded] == SEP).all() and (batch["labels"][padded] == NO_LOSS).all()
    assert ((batch["labels"] == SEP).sum(1) == 1).all()


def test_prompts_to_generate_from_are_padded_on_the_left(e2e):
    task = e2e()
    batch = next(iter(task.val_dataloader()))
    ids, mask = batch["prompt_ids"], batch["prompt_mask"]
    assert (mask.diff(dim=1) >= 0).all() and (ids[:, -1] == task.tokenizer.convert_tokens_to_ids(":")).all()
    assert sorted(batch["numbers"].tolist()) == list(range(6))
    assert set(task.inputs(batch)) == {"input_ids", "attention_mask"}
    for row, number in enumerate(batch["numbers"].tolist()):
        first = task.references(number)[0]
        wanted = batch["labels"][row]
        assert task.tokenizer.decode(wanted[wanted != NO_LOSS][:-1]) == " ".join(task.tokenizer.tokenize(first))


def test_truncated_rows_are_counted(e2e):
    task = e2e(max_new_tokens=5)
    task.setup()
    assert task.describe()["truncated"] == {"train": 48, "val": 6, "test": 6}


def test_texts_of_the_training_rows_are_prompts_and_references(e2e):
    texts = e2e().training_texts()
    assert len(texts) == 24 + 48 and texts[0].endswith("\nText:")


def greedy(net, prompt, most, end):
    ids = prompt[None]
    for _ in range(most):
        ids = torch.cat([ids, net(ids).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
        if ids[0, -1] == end:
            break
    return ids[0, len(prompt) :].tolist()


def test_greedy_generation_of_a_padded_batch_is_that_of_each_prompt_alone(e2e):
    task, net = e2e(beams=1, no_repeat=0, max_new_tokens=7), tiny_net()
    batch = next(iter(task.val_dataloader()))
    tokens, numbers = task.generate(net, batch)
    assert tokens.shape == (6, 7) and torch.equal(numbers, batch["numbers"])
    for row, (ids, mask) in enumerate(zip(batch["prompt_ids"], batch["prompt_mask"], strict=True)):
        alone = greedy(net, ids[mask.bool()], 7, SEP)
        assert tokens[row].tolist() == alone + [SEP] * (7 - len(alone))


def test_beams_find_a_text_at_least_as_likely_as_greedy(e2e):
    net = tiny_net()
    with torch.no_grad():
        net.lm_head.weight.mul_(2)

    def likelihood(task):
        batch = next(iter(task.val_dataloader()))
        found = 0.0
        texts = task.generate(net, batch)[0]
        for ids, mask, text in zip(batch["prompt_ids"], batch["prompt_mask"], texts, strict=True):
            end = text.tolist().index(SEP) + 1 if SEP in text else len(text)
            row = torch.cat([ids[mask.bool()], text[:end]])
            scores = net(row[None]).logits[0].log_softmax(-1)
            start = int(mask.sum())
            found += sum(scores[place - 1, row[place]].item() for place in range(start, len(row)))
        return found

    settings = {"no_repeat": 0, "max_new_tokens": 4, "length_penalty": 0.0}
    assert likelihood(e2e(beams=6, **settings)) > likelihood(e2e(beams=1, **settings))


def test_no_run_of_tokens_twice_in_a_text_but_those_of_the_prompt_may_come(e2e):
    net = tiny_net()
    batch = next(iter(e2e().val_dataloader()))
    free, banned = (e2e(beams=1, no_repeat=number, max_new_tokens=12).generate(net, batch)[0] for number in (0, 1))
    assert any(len(set(row.tolist())) < 12 for row in free)  # an untrained model says one word again and again
    assert all(len(set(row)) == len(row) for row in (row[row != SEP].tolist() for row in banned))
    prompt_words = [set(ids.tolist()) for ids in batch["prompt_ids"]]
    assert any(set(row.tolist()) & words for row, words in zip(banned, prompt_words, strict=True))


def test_scores_and_examples_are_those_of_the_texts(e2e):
    task = e2e(metrics=["rouge_l"], best_metric="rouge_l")
    metrics = task.metrics("val")
    batch = next(iter(task.val_dataloader()))
    first = {number: task.references(number)[1] for number in batch["numbers"].tolist()}
    rows = [task.tokenizer(text, add_special_tokens=False)["input_ids"] for text in first.values()]
    tokens = torch.tensor([(row + [SEP] * 16)[:16] for row in rows])
    metrics.update(tokens, batch["numbers"])
    assert metrics.compute()["rouge_l"] == pytest.approx(1.0)
    examples = task.examples()
    assert set(examples) == {"val", "test"} and examples["test"] == []
    assert [one["references"] for one in examples["val"]] == task.splits.validation["references"]
    assert examples["val"][0]["meaning"] == task.splits.validation["text"][0]
    assert examples["val"][0]["generated"].replace(" ", "") == first[0].replace(" ", "")
