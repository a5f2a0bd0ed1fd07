"""The examples run, and their loops are the ones that one would have without them."""

import copy
import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, Trainer, TrainerCallback

import keepfrac
from tests.examples import hf_trainer, made, plain_torch
from tests.tiny import tiny

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*")
EXACT = {"keep_frac": 1.0, "store": "exact", "kernels": "torch"}


def logged(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_plain_loop_learns_and_leaves_the_stock_model(precision):
    model, classes = made.model(), [type(module) for module in made.model().modules()]
    losses, kept = plain_torch.train(model, made.batches(24), precision)
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])
    assert 0 < kept["achieved"] <= 0.3 + 0.1 and kept["asked"] == 0.3
    assert [type(module) for module in model.modules()] == classes


def test_the_snippet_of_the_readme_is_the_example(root):
    page = (root / "README.md").read_text(encoding="utf-8")
    section = page.partition("## In your own training loop")[2].partition("\n## ")[0]
    written = {line.strip() for line in (root / "tests/examples/plain_torch.py").read_text("utf-8").splitlines()}
    code = [line.strip().partition("    #")[0].strip() for line in section.splitlines() if line.startswith("    ")]
    own = [line for line in code if line and not line.startswith("#")]
    assert len(own) >= 8 and [line for line in own if line not in written] == []


@pytest.mark.parametrize("bf16", [False, True])
def test_trainer_accumulates_and_saves_a_stock_model(tmp_path, bf16):
    trainer, kept = hf_trainer.train(made.model(), made.rows(), tmp_path, bf16=bf16)
    assert trainer.state.global_step == 8 and len(logged(trainer)) == 8
    assert 0 < kept["achieved"] < 0.4
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    for one, other in zip(again.parameters(), trainer.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_all_kept_exactly_is_the_plain_trainer(tmp_path):
    plain, _ = hf_trainer.train(made.model(), made.rows(), tmp_path / "plain", save_less={"by": "checkpoint"})
    exact, _ = hf_trainer.train(made.model(), made.rows(), tmp_path / "exact", save_less=EXACT)
    torch.testing.assert_close(torch.tensor(logged(exact)), torch.tensor(logged(plain)), rtol=0, atol=1e-4)
    stock = Trainer(made.model(), copy.copy(plain.args), train_dataset=made.rows())
    stock.train()
    assert logged(stock) == logged(plain)  # checkpointing repeats the very same operations


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **_):
        control.should_training_stop = state.global_step == self.step


def test_a_resumed_trainer_is_the_uninterrupted_one(tmp_path):
    dropout = {"dropout": 0.1}
    whole, _ = hf_trainer.train(made.model(**dropout), made.rows(), tmp_path / "whole")
    hf_trainer.train(made.model(**dropout), made.rows(), tmp_path / "cut", callbacks=[StopAt(4)])
    resumed = made.model(**dropout, seed=9)
    hf_trainer.train(resumed, made.rows(), tmp_path / "cut", resume=str(tmp_path / "cut" / "checkpoint-4"))
    for one, other in zip(resumed.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(one, other)


def launched(folder, processes, *words):
    """Runs the example in as many processes; returns what each left."""
    folder.mkdir()
    root = os.fspath(hf_trainer.Path(__file__).resolve().parents[2])
    paths = os.pathsep.join([root, os.path.join(root, "src")])  # noqa: PTH118
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += [os.path.join(root, "tests/examples/two_processes.py"), os.fspath(folder), *words]  # noqa: PTH118
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [torch.load(folder / f"process{number}.pt", weights_only=True) for number in range(processes)]


def test_two_processes_of_accelerate_are_one(tmp_path):
    pytest.importorskip("accelerate")
    two = launched(tmp_path / "two", 2, "1.0", "exact")
    assert two[0]["sums"] == two[1]["sums"]
    (one,) = launched(tmp_path / "one", 1, "1.0", "exact")
    for name, total in one["sums"].items():
        assert two[0]["sums"][name] == pytest.approx(total, abs=1e-3), name
    model = keepfrac.load(tmp_path / "two" / "model")
    assert {type(module) for module in model.modules()} == {type(module) for module in made.model().modules()}


def test_sentence_transformers_trains_its_encoder(tmp_path):
    package = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    tiny("bert").base_model.save_pretrained(tmp_path / "encoder")
    pytest.skip(f"no tokenizer without a network for {package.__name__}")


def test_every_head_takes_part(tmp_path):
    net = tiny(head="masked_lm", attention="sdpa")
    handle = keepfrac.save_less(net, keep_frac=0.5)
    net.train()
    batch = {key: value for key, value in made.batches(1)[0].items() if key != "labels"}
    net(**batch, labels=batch["input_ids"]).loss.backward()
    assert isinstance(net.get_output_embeddings(), nn.Linear) and handle.kept()["achieved"] > 0
    handle.restore()
