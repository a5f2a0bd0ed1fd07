import pickle
from types import SimpleNamespace

import pytest
import torch

from keepfrac.errors import UserError
from keepfrac.tasks.rows import Rows, Splits
from keepfrac.tasks.text import TextTask
from tests.unit.tasks.conftest import word_tokenizer

SETTINGS = {
    "name": "toy", "rows": None, "max_length": 16, "metrics": ["accuracy"], "best_metric": "accuracy",
    "batch_size": 4, "eval_batch_size": 5, "seed": 3, "num_workers": 0,
}  # fmt: skip


class Toy(TextTask):
    """Texts of one to ten words; the label is their number."""

    def __init__(self, problem="classification", **changes):
        self.problem = problem
        super().__init__(self.Settings(**SETTINGS | changes))

    def read(self):
        def rows(count):
            labels = [i % 10 for i in range(count)]
            if self.problem == "regression":
                labels = [float(label) for label in labels]
            return Rows({"text": ["red " * (i % 10 + 1) for i in range(count)], "label": labels})

        names = None if self.problem == "regression" else tuple(map(str, range(10)))
        return Splits(rows(42), rows(12), rows(13), "made up", "by hand", names, extra={"more": rows(3)})


@pytest.fixture
def toy(tokenizer):
    def make(**overrides):
        task = Toy(**overrides)
        task.use(tokenizer)
        return task

    return make


def contents(loader):
    return [tuple(batch["labels"].tolist()) for batch in loader]


def test_a_batch_is_padded_to_its_longest(toy):
    batch = next(iter(toy().train_dataloader()))
    assert set(batch) == {"input_ids", "attention_mask", "token_type_ids", "labels"}
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}
    lengths = batch["labels"] + 3  # words, [CLS] and [SEP]
    assert batch["input_ids"].shape == (4, int(lengths.max()))
    assert batch["attention_mask"].sum(1).tolist() == lengths.tolist()
    assert ((batch["input_ids"] == 0) == (batch["attention_mask"] == 0)).all()


def test_inputs_are_all_but_the_labels(toy):
    task = toy()
    batch = next(iter(task.val_dataloader()))
    assert set(task.inputs(batch)) == set(batch) - {"labels"}


def test_every_split_is_seen_whole_in_evaluation(toy):
    task = toy()
    assert sorted(sum(contents(task.val_dataloader()), ())) == sorted(i % 10 for i in range(12))
    assert sorted(sum(contents(task.test_dataloader()), ())) == sorted(i % 10 for i in range(13))
    assert sorted(sum(contents(task.extra_dataloaders()["more"]), ())) == [0, 1, 2]


def test_the_seed_orders_training_alone(toy):
    one, other = toy(), toy(seed=4)
    assert contents(one.train_dataloader()) == contents(toy().train_dataloader())
    assert contents(one.train_dataloader()) != contents(other.train_dataloader())
    assert contents(one.val_dataloader()) == contents(other.val_dataloader())
    assert one.fingerprint() == other.fingerprint()


def test_the_global_random_numbers_are_untouched(toy):
    task = toy()
    before = torch.random.get_rng_state()
    contents(task.train_dataloader())
    contents(task.val_dataloader())
    list(task.training_batches())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_worker_processes_give_the_same_batches(toy):
    assert contents(toy(num_workers=2).train_dataloader()) == contents(toy().train_dataloader())


def test_processes_share_an_epoch(toy):
    task = toy(batch_size=2)
    assert task.batches_per_epoch(2) == len(toy(batch_size=4).train_dataloader())
    parts = []
    for rank in range(2):
        device = SimpleNamespace(root_device=torch.device("cpu"))
        task.trainer = SimpleNamespace(global_rank=rank, world_size=2, strategy=device)
        parts.append(contents(task.train_dataloader()))
    whole = contents(toy(batch_size=4).train_dataloader())
    assert [sorted(a + b) for a, b in zip(*parts, strict=True)] == [sorted(batch) for batch in whole]


def test_a_probe_batch_is_always_the_same(toy):
    assert toy().probe_batch(4)["labels"].tolist() == toy(seed=9).probe_batch(4)["labels"].tolist() == [0, 1, 2, 3]
    assert len(toy().probe_batch(100)["labels"]) == 12


def test_a_new_tokenizer_drops_what_was_encoded(toy):
    task = toy()
    assert task.probe_batch(1)["input_ids"].tolist() == [[2, 6, 3]]
    task.use(word_tokenizer(["red"]))
    assert task.probe_batch(1)["input_ids"].tolist() == [[2, 4, 3]]


def test_classification_loss_and_prediction(toy):
    batch = {"labels": torch.tensor([1, 0])}
    outputs = SimpleNamespace(logits=torch.tensor([[0.0, 1.0], [0.0, 2.0]], dtype=torch.bfloat16))
    task = toy()
    predictions, targets = task.predict(outputs, batch)
    assert (predictions.tolist(), targets.tolist()) == ([1, 1], [1, 0])
    loss = task.loss(outputs, batch)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx((0.313262 + 2.126928) / 2, rel=1e-5)


def test_regression_loss_and_prediction(toy):
    task = toy(problem="regression", metrics=None, best_metric=None)
    assert (task.num_labels, task.labels, task.best_metric) == (1, None, "pearson_and_spearman")
    batch = task.probe_batch(2)
    assert batch["labels"].dtype == torch.float32
    outputs = SimpleNamespace(logits=torch.tensor([[1.0], [3.0]]))
    assert task.loss(outputs, batch).item() == pytest.approx(2.5)  # (1-0)^2 and (3-1)^2
    assert task.predict(outputs, batch)[0].tolist() == [1.0, 3.0]


def test_metrics_are_fresh_and_of_the_task(toy):
    task = toy(metrics=["accuracy", "f1_macro"])
    assert set(task.metrics("val").keys()) == {"accuracy", "f1_macro"}
    assert task.metrics("val") is not task.metrics("val")
    assert (task.direction, toy(best_metric="loss").direction) == ("max", "min")


def test_describe_states_the_data(toy):
    task = toy(max_length=5)
    assert task.describe()["truncated"] is None
    task.setup()
    described = task.describe()
    assert described.pop("account")["test"] == {
        "rows": 13,
        "longest_text": 40,
        "classes": {str(label): 1 + (label < 3) for label in range(10)},
        "shared": {"train": 13, "val": 13},
        "longest": 5,
        "truncated": pytest.approx(7 / 13, abs=1e-6),
    }
    assert described == {
        "source": "made up",
        "rows": {"train": 42, "val": 12, "test": 13, "more": 3},
        "rows_asked": None,
        "splits": "by hand",
        "truncated": {"train": 28, "val": 7, "test": 7, "more": 0},
    }


def test_it_can_be_sent_to_another_process(toy):
    task = toy()
    task.setup()
    assert contents(pickle.loads(pickle.dumps(task)).val_dataloader()) == contents(task.val_dataloader())


def test_a_length_that_the_tokenizer_does_not_allow(toy):
    with pytest.raises(UserError, match="max_length=65: the model's tokenizer allows 64"):
        toy(max_length=65)


def test_an_empty_split_is_an_error(toy, monkeypatch):
    empty = Rows({"text": [], "label": []})
    monkeypatch.setattr(Toy, "read", lambda self: Splits(empty, empty, empty, "made up", "by hand", ("0", "1")))
    with pytest.raises(UserError, match="task toy: the train split is empty"):
        toy().fingerprint()
