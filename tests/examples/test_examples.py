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
from tests.examples import hf_trainer, made, plain_torch, sentence_encoder
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


def launched(folder, root, *words):
    """Runs the example in two processes; returns what each left."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(root / "tests/examples/two_processes.py"), str(folder), *words]
    paths = os.pathsep.join([str(root), str(root / "src")])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [torch.load(folder / f"process{number}.pt", weights_only=True) for number in (0, 1)]


def test_two_processes_of_accelerate_are_one_plain_loop(tmp_path, root):
    pytest.importorskip("accelerate")
    first, second = launched(tmp_path, root, "1.0", "exact")
    assert first["sums"] == second["sums"] and first["kept"] > 0.9
    plain = made.model()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    for batch in torch.utils.data.DataLoader(made.rows(), batch_size=16):
        plain(**batch).loss.backward()
        optimizer.step(), optimizer.zero_grad()
    left = keepfrac.load(tmp_path / "model")
    assert type(left) is type(plain)
    for one, other in zip(left.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@pytest.fixture
def encoder_folder(tmp_path):
    """A stock encoder with a tokenizer of a word a token."""
    tokenizers, transformers = pytest.importorskip("tokenizers"), pytest.importorskip("transformers")
    words = {word: number for number, word in enumerate(("[PAD]", "[UNK]", *map(str, range(50))))}
    made_of = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    made_of.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made_of, pad_token="[PAD]", unk_token="[UNK]", model_max_length=32
    )
    tokenizer.save_pretrained(tmp_path / "encoder")
    made.model().base_model.save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


@pytest.mark.filterwarnings("ignore")  # the library's remarks on a folder without pooling
def test_sentence_transformers_trains_its_encoder(tmp_path, encoder_folder):
    library = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    datasets = pytest.importorskip("datasets")
    encoder = library.SentenceTransformer(str(encoder_folder), device="cpu")
    before = encoder.encode(["1 2 3"])
    texts = [" ".join(map(str, range(n, n + 5))) for n in range(16)]
    pairs = datasets.Dataset.from_dict({"anchor": texts, "positive": texts[::-1]})
    kept = sentence_encoder.train(encoder, pairs, tmp_path / "run")
    assert 0 < kept["achieved"] <= 0.4
    encoder.save(str(tmp_path / "saved"))
    again = library.SentenceTransformer(str(tmp_path / "saved"), device="cpu").encode(["1 2 3"])
    assert abs(again - encoder.encode(["1 2 3"])).max() < 1e-6 < abs(again - before).max()


def test_every_head_takes_part(tmp_path):
    net = tiny(head="masked_lm", attention="sdpa")
    handle = keepfrac.save_less(net, keep_frac=0.5)
    net.train()
    batch = {key: value for key, value in made.batches(1)[0].items() if key != "labels"}
    net(**batch, labels=batch["input_ids"]).loss.backward()
    assert isinstance(net.get_output_embeddings(), nn.Linear) and handle.kept()["achieved"] > 0
    handle.restore()
