from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import cross_entropy

from keepfrac.storage.build import build
from keepfrac.tasks.masking import IGNORED
from tests.unit.tasks.conftest import WORDS, settings_of, word_tokenizer
from tests.unit.tasks.test_generation import E2E


@pytest.fixture
def tokenizer():
    made = word_tokenizer()
    made.add_special_tokens({"mask_token": "[MASK]"})
    return made


@pytest.fixture
def lines(tmp_path):
    path = tmp_path / "texts.txt"
    texts = [" ".join(WORDS[(i + j * (i % 5 + 1)) % len(WORDS)] for j in range(i % 9 + 4)) for i in range(300)]
    path.write_text("\n".join([*texts[:100], "", *texts[100:]]) + "\n")
    return path


@pytest.fixture
def make(lines, tokenizer):
    def make_(**overrides):
        task = build(settings_of("mlm", batch_size=8, max_length=32, text_file=str(lines)) | overrides)
        task.use(tokenizer)
        return task

    return make_


def contents(loader, count=None):
    found = [{name: tensor.clone() for name, tensor in batch.items()} for batch in loader]
    return found[:count]


def same(first, second):
    return len(first) == len(second) and all(
        set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)
        for a, b in zip(first, second, strict=True)
    )


def test_lines_are_texts_and_a_tenth_is_held_out(make):
    task = make()
    splits = task.splits
    sizes = [len(rows) for rows in splits.named().values()]
    assert sum(sizes) == 300 and sizes[0] > 250 and min(sizes) > 3
    assert splits.notes == {"empty_lines": 1}
    assert task.labels is None and task.head == "masked_lm"


def test_of_a_task_its_test_has_no_part(make, tmp_path):
    for name, first in (("train", 0), ("test", 5000)):
        rows = [f"{i}|,|{i} {i + 1}|,|{i % 17}" for i in range(first, first + 200)]
        (tmp_path / f"{name}.csv").write_text("\n".join(rows) + "\n")
    splits = make(of=settings_of("gaiic", data_dir=str(tmp_path)), text_file=None).splits
    texts = [text for rows in splits.named().values() for text in rows["text"]]
    assert sorted(texts) == sorted(f"{i} {i + 1}" for i in range(200))
    assert "gaiic" in splits.how and splits.notes == {"of": "gaiic"}


def test_of_meanings_and_what_is_said_of_them_all_is_read(make):
    task = make(of=settings_of("e2e", data_dir=str(E2E)), text_file=None)
    train = task.splits.train["text"]
    assert sum(text.startswith("name[") for text in train) == len({*train}) - 48 and len(train) > 48
    assert any(text.endswith(".") for text in task.splits.validation["text"])


def test_texts_of_pairs_stand_by_themselves(make, tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("a,b,label\n" + "".join(f"red {i},door {i},{i % 2}\n" for i in range(200)))
    of = settings_of("csv", train_file=str(path), text="a", text_pair="b")
    task = make(of=of, text_file=None)
    assert {text.split()[0] for text in task.splits.train["text"]} == {"red", "door"}
    assert task.training_texts() == task.splits.train["text"]


def test_masks_depend_on_seed_epoch_and_row_alone(make):
    first, again = make(), make()
    torch.manual_seed(1)
    epochs = []
    for epoch in range(2):
        first.set_epoch(epoch)
        epochs.append(contents(first.train_dataloader()))
    torch.manual_seed(2)
    assert same(epochs[0], contents(again.train_dataloader()))
    resumed = make()
    resumed.start_at(1, 3)
    assert same(epochs[1][3:], contents(resumed.train_dataloader()))
    assert not same(epochs[0], contents(make(seed=2).train_dataloader()))
    row = first.encoded("train")
    first.set_epoch(0)
    before = row[0][2].copy()
    drawn = []
    for epoch in range(1, 6):
        first.set_epoch(epoch)
        drawn.append((row[0][2] != before).any())
    assert any(drawn)


def test_workers_draw_the_same(make):
    assert same(contents(make().train_dataloader(), 3), contents(make(num_workers=1).train_dataloader(), 3))


def test_validation_is_masked_alike_for_every_seed_and_epoch(make):
    first, other = make(), make(seed=7)
    other.set_epoch(4)
    assert same(contents(first.val_dataloader()), contents(other.val_dataloader()))


def test_loss_and_metrics_count_masked_tokens_alone(make):
    task = make()
    batch = task.probe_batch(5)
    hidden = batch["labels"] != IGNORED
    logits = torch.randn(*batch["labels"].shape, 20)
    outputs = SimpleNamespace(logits=logits)
    expected = cross_entropy(logits[hidden], batch["labels"][hidden])
    assert task.loss(outputs, batch).item() == pytest.approx(expected.item())
    assert set(task.inputs(batch)) == {"input_ids", "attention_mask", "token_type_ids"}
    metrics = task.metrics("val")
    for part in (slice(0, 2), slice(2, 5)):
        piece = {name: tensor[part] for name, tensor in batch.items()}
        metrics.update(*task.predict(SimpleNamespace(logits=logits[part]), piece))
    found = {name: float(value) for name, value in metrics.compute().items()}
    assert found["perplexity"] == pytest.approx(expected.exp().item(), rel=1e-5)
    right = (logits[hidden].argmax(-1) == batch["labels"][hidden]).float().mean().item()
    assert found["masked_accuracy"] == pytest.approx(right)
    assert task.metrics_to_log(expected)["train/perplexity"].item() == pytest.approx(found["perplexity"], rel=1e-5)


def test_a_batch_without_masked_tokens_has_no_loss(make):
    task = make()
    batch = {"labels": torch.full((2, 4), IGNORED)}
    loss = task.loss(SimpleNamespace(logits=torch.randn(2, 4, 20, requires_grad=True)), batch)
    loss.backward()
    assert loss.item() == 0
