"""Hugging Face's Trainer with `save_less`: gradient accumulation, bf16, and a resumed run that draws on as it would."""

from pathlib import Path

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

import keepfrac


class KeepState(TrainerCallback):
    """Writes the handle's state into each checkpoint, and takes it back from the one that is resumed."""

    def __init__(self, handle):
        self.handle = handle

    def on_save(self, args, state, control, **_):
        torch.save(self.handle.state(), self._file(args, state))

    def on_train_begin(self, args, state, control, **_):
        if state.global_step:
            self.handle.load_state(torch.load(self._file(args, state), weights_only=True))

    def _file(self, args, state):
        return Path(args.output_dir) / f"checkpoint-{state.global_step}" / "keepfrac.pt"


def train(model, rows, folder, resume=None, save_less=None, callbacks=(), trainer_class=Trainer, **given):
    """Trains in place and saves the stock model; returns the trainer, and what was kept.

    Args:
        model: a stock one.
        rows: the training rows.
        folder: of the checkpoints and of the model.
        resume: a checkpoint's folder.
        save_less: words for `keepfrac.save_less`.
        callbacks: more of them.
        trainer_class: Trainer, or one of its kind.
        **given: more TrainingArguments.
    """
    handle = keepfrac.save_less(model, **(save_less or {"keep_frac": 0.3}))
    usual = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 8, "learning_rate": 1e-3}
    usual |= {"save_steps": 4, "logging_steps": 1, "report_to": "none", "use_cpu": True, "disable_tqdm": True}
    arguments = TrainingArguments(output_dir=str(folder), **{**usual, **given})
    trainer = trainer_class(model, arguments, train_dataset=rows, callbacks=[KeepState(handle), *callbacks])
    trainer.train(resume_from_checkpoint=resume)
    kept = handle.kept()
    handle.restore()
    trainer.save_model(str(Path(folder) / "model"))
    return trainer, kept
