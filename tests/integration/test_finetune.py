"""FineTune as nosp is the plain loop that anyone would write in torch: equal bit for bit."""

import json

import pytest
import torch
from safetensors.torch import load_file

from keepfrac.errors import UserError
from keepfrac.models.load import load_net, load_tokenizer
from keepfrac.run import identity
from keepfrac.run.build import build_task
from keepfrac.run.run import run
from keepfrac.storage import results
from keepfrac.training.finetune import FineTune, warmup_then_linear


def by_hand(settings: dict) -> dict[str, torch.Tensor]:
    """Fine-tunes by a loop of torch alone and returns the weights after the last step."""
    import pytorch_lightning as pl

    torch.set_num_threads(1)
    pl.seed_everything(settings["seed"], verbose=False)
    tokenizer = load_tokenizer(settings["model"])
    task = build_task(identity.check(settings))
    task.use(tokenizer)
    task.setup()
    net = load_net(settings["model"], task.head, task.labels, task.num_labels, len(tokenizer)).train()
    named = list(net.named_parameters())
    groups = [
        {"params": [p for _, p in named if p.ndim > 1], "weight_decay": settings["weight_decay"]},
        {"params": [p for _, p in named if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings["lr"], fused=True)
    total = settings["epochs"] * task.batches_per_epoch(1)
    step = 0
    for epoch in range(settings["epochs"]):
        task.start_at(epoch, 0)
        for batch in task.train_dataloader():
            for group in optimizer.param_groups:
                group["lr"] = settings["lr"] * warmup_then_linear(step / total, settings["warmup"])
            labels = batch["labels"]
            logits = net(**{key: value for key, value in batch.items() if key != "labels"}).logits
            torch.nn.functional.cross_entropy(logits.float(), labels).backward()
            torch.nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], settings["clip"])
            optimizer.step()
            optimizer.zero_grad()
            step += 1
    return net.state_dict()


def test_nosp_is_the_plain_torch_loop(composed):
    cfg = composed("method=nosp", "eval_every=24", "model.dropout=0.1")  # one validation, at the last step
    run(cfg)
    weights = load_file(identity.cell(cfg).folder / "model" / "model.safetensors")
    expected = by_hand(identity.plain(cfg))
    assert set(weights) == set(expected)
    assert all(torch.equal(weights[name], expected[name]) for name in weights)


def test_a_run_leaves_what_is_promised(composed, caplog):
    cfg = composed("method=norm", "keep_frac=0.3")
    with caplog.at_level("INFO"):
        run(cfg)
    folder = identity.cell(cfg).folder
    found = json.loads((folder / "results.json").read_text())
    assert found["status"] == "done" and found["identity"] == identity.cell(cfg).identity
    assert {"val/accuracy", "val/loss", "test/accuracy", "test/loss"} <= set(found["scores"])
    account = found["provenance"]["data"]["account"]
    assert account["train"]["classes"] == {"bad": 48, "good": 48} and account["test"]["truncated"] == 0
    assert "train: 96 rows (bad: 48, good: 48); longest" in caplog.text
    assert found["kept"]["asked"] == 0.3 and abs(found["kept"]["achieved"] - 0.3) < 0.05
    assert found["cost"]["saved_bytes"] < found["cost"]["saved_bytes_dense"]
    assert (folder / "metrics.csv").read_text().count("train/loss") > 0
    assert not (folder / "resume.ckpt").exists() and not (folder / "best.pt").exists()


def test_the_delivered_model_loads_plainly_and_scores_the_same(composed):
    from transformers import pipeline

    cfg = composed("method=norm")
    run(cfg)
    folder = identity.cell(cfg).folder / "model"
    classify = pipeline("text-classification", model=str(folder), tokenizer=str(folder))
    assert classify("the film was lovely")[0]["label"] in ("good", "bad")


def test_dropout_is_on_while_training(composed, monkeypatch):
    seen = set()
    original = FineTune.training_step

    def training_step(self, batch, index):
        seen.add(self.net.training and all(module.training for module in self.net.modules()))
        return original(self, batch, index)

    monkeypatch.setattr(FineTune, "training_step", training_step)
    base = composed("epochs=1")
    run(base)
    run(composed("epochs=1", "model=from_run", f"model.run={identity.cell(base).folder}", "name=again"))
    assert seen == {True}


def test_epochs_0_evaluates_what_a_run_left(composed):
    base = composed("method=nosp")
    first = run(base)
    again = run(composed("epochs=0", "model=from_run", f"model.run={identity.cell(base).folder}", "name=again"))
    assert again["scores"] == first["scores"]
    chain = ("epochs=0", "model=from_run", f"model.run={identity.cell(base).folder}", "probe_steps=0", "name=swapped")
    swapped = run(composed(*chain, "task.labels=[good,bad]"))
    assert swapped["scores"]["test/loss"] == pytest.approx(first["scores"]["test/loss"], abs=1e-6)


def test_epochs_0_asks_for_the_head_of_the_run(composed, csv_folder, tmp_path):
    base = composed("method=nosp", "steps=1")
    run(base)
    other = []
    for key in ("train", "validation", "test"):
        lines = (csv_folder / f"{key}.csv").read_text().splitlines()
        (tmp_path / f"{key}.csv").write_text("\n".join([*lines, "neither,neutral", "nor,neutral"]) + "\n")
        other.append(f"task.{key}_file={tmp_path}/{key}.csv")
    chain = ("model=from_run", f"model.run={identity.cell(base).folder}", *other, "name=again", "probe_steps=0")
    with pytest.raises(UserError, match=r"of task=csv, has no head that fits this task \(classifier\.bias"):
        run(composed("epochs=0", *chain))
    assert run(composed("steps=1", *chain))["status"] == "done"


def test_accumulated_batches_are_the_same_step(composed):
    one = run(composed("method=nosp", "model.dropout=0", "model.attention_dropout=0", "steps=3"))
    two = run(composed("method=nosp", "model.dropout=0", "model.attention_dropout=0", "steps=3", "accumulate=2"))
    assert one["cost"]["steps"] == two["cost"]["steps"] == 3
    assert abs(one["scores"]["val/loss"] - two["scores"]["val/loss"]) < 0.05


def test_a_nan_loss_stops_the_run_and_says_at_which_step(composed):
    cfg = composed("lr=1", "clip=null", "weight_decay=0")
    original = FineTune.losses
    FineTune.losses = lambda self, batch, outputs: {"bad": torch.tensor(float("nan"))} if self.global_step == 2 else {}
    try:
        with pytest.raises(UserError, match="step 2"):
            run(cfg)
    finally:
        FineTune.losses = original
    found = results.read(identity.cell(cfg).folder)
    assert found["status"] == "failed" and "step 2" in found["error"]


def test_bf16_autocast_runs(composed):
    run(composed("method=norm", "hardware.precision=bf16-mixed", "epochs=1"))
