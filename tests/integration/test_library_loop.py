"""`save_less` in the Trainer learns what `method=late` learns in the own loop: the same losses, step by step."""

import pytest
import pytorch_lightning as pl
import torch
from transformers import Trainer, TrainingArguments

import keepfrac
from keepfrac.models.load import load_net, load_tokenizer
from keepfrac.prune.schedules import warmup_then_linear
from keepfrac.run import identity
from keepfrac.run.build import build_task
from keepfrac.run.run import run
from keepfrac.training.finetune import FineTune

STEPS = 12


def own_losses(cfg, monkeypatch):
    losses, original = [], FineTune.training_step

    def training_step(self, batch, index):
        loss = original(self, batch, index)
        losses.append(float(loss.detach()))
        return loss

    monkeypatch.setattr(FineTune, "training_step", training_step)
    run(cfg)
    return losses


class Recording(Trainer):
    """The Trainer over whole batches in their order."""

    def get_train_dataloader(self):
        return torch.utils.data.DataLoader(self.train_dataset, batch_size=None)

    def compute_loss(self, model, inputs, **more):
        loss = super().compute_loss(model, inputs, **more)
        self.losses.append(float(loss.detach()))
        return loss


def trainer_losses(settings, folder):
    pl.seed_everything(settings["seed"], verbose=False)
    tokenizer = load_tokenizer(settings["model"])
    task = build_task(identity.check(settings))
    task.use(tokenizer)
    task.setup()
    net = load_net(settings["model"], task.head, task.labels, task.num_labels, len(tokenizer)).train()
    task.start_at(0, 0)
    batches = [task.inputs(batch) | {"labels": batch["labels"]} for batch in task.train_dataloader()]
    keepfrac.save_less(net, keep_frac=settings["keep_frac"], selection_seed=settings["seed"])
    named = [p for p in net.parameters() if p.requires_grad]
    groups = [{"params": [p for p in named if p.ndim > 1], "weight_decay": settings["weight_decay"]}]
    groups += [{"params": [p for p in named if p.ndim <= 1], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=settings["lr"], fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warmup_then_linear(min(1.0, step / STEPS), settings["warmup"])
    )
    arguments = TrainingArguments(
        str(folder), max_steps=STEPS, max_grad_norm=settings["clip"], report_to="none", use_cpu=True,
        save_strategy="no", disable_tqdm=True, remove_unused_columns=False, seed=settings["seed"],
    )  # fmt: skip
    trainer = Recording(net, arguments, train_dataset=batches, optimizers=(optimizer, schedule))
    trainer.losses = []
    trainer.train()
    return trainer.losses


@pytest.mark.filterwarnings("ignore:.*pin_memory.*")
def test_the_losses_of_the_trainer_are_those_of_the_own_loop(composed, tmp_path, monkeypatch):
    words = (f"steps={STEPS}", f"eval_every={STEPS}", "probe_steps=0")
    # the Trainer seeds torch anew, which the dropout of embeddings and head would follow
    cfg = composed("method=late", "keep_frac=0.3", "model.dropout=0", "model.attention_dropout=0", *words)
    ours = own_losses(cfg, monkeypatch)
    theirs = trainer_losses(identity.plain(cfg), tmp_path / "trainer")
    assert len(ours) == len(theirs) == STEPS
    torch.testing.assert_close(torch.tensor(theirs), torch.tensor(ours), rtol=0, atol=1e-4)
