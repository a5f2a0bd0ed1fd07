"""What a run is built of: the task, the method on its model, the loggers and the trainer."""

import functools
import logging
import os
import warnings
from collections.abc import Callable, Sequence

import pytorch_lightning as pl
from pytorch_lightning.plugins.environments import LightningEnvironment

from keepfrac.distillation.build import distiller_of
from keepfrac.models.load import load_masks, silence_library_logging
from keepfrac.run.identity import Cell
from keepfrac.run.settings import RunSettings
from keepfrac.storage.build import build
from keepfrac.tracking import wandb_run
from keepfrac.tracking.tensorboard import TensorBoard
from keepfrac.training.checkpoint import CheckpointIO
from keepfrac.training.finetune import FineTune
from keepfrac.training.loop import Loop, LoopSettings


def build_task(settings: RunSettings):
    """Returns the task, with the batch size of one process and one accumulated batch."""
    return build(settings.task | {"batch_size": settings.rows})


def total_steps(settings: RunSettings, task) -> int:
    """Returns the optimizer steps of the whole fit."""
    if not settings.epochs:
        return 0
    if settings.steps:
        return settings.steps
    return settings.epochs * -(-task.batches_per_epoch(settings.hardware.devices) // settings.accumulate)


def build_module(settings: RunSettings, net, task, steps: int) -> FineTune:
    """Returns the method's module, with what is saved for its backward pass.

    Args:
        settings: of the run.
        net: the model.
        task: what is learnt.
        steps: optimizer steps of the whole fit.
    """
    loop = Loop(**{key: getattr(settings, key) for key in LoopSettings.names()}, total_steps=steps)
    module = build(settings.method, net=net, task=task, loop=loop)
    if settings.backward["name"] != "none":
        module.backward_saver = build(settings.backward)
    return module


def build_whole_module(settings: RunSettings, net, task, steps: int, tokenizer) -> FineTune:
    """Returns the method's module with its masks and its teacher; `tokenizer` is that of the model."""
    module = build_module(settings, net, task, steps)
    module.masks = load_masks(settings.model.plain())
    module.distiller = distiller_of(settings.plain(), task, tokenizer, net) if steps else None
    return module


def augmenter(settings: RunSettings, task, leads: bool, report_progress: Callable[[int, int], None]) -> Callable | None:
    """Returns what gives the training split the rows of `augment`; None: it stays as it is.

    Args:
        settings: of the run.
        task: what is learnt.
        leads: whether this process makes them; the others read.
        report_progress: called with (sentences done, all sentences).
    """
    if settings.augment["name"] == "none" or not settings.epochs:
        return None
    return functools.partial(
        build(settings.augment),
        task=task.name,
        leads=leads,
        device=settings.hardware.device,
        bf16=settings.hardware.resolved_precision == "bf16-mixed",
        report_progress=report_progress,
    )


def build_loggers(settings: RunSettings, cell: Cell, resumed_at: int) -> list:
    """Returns the loggers of the process that writes: metrics.csv, and what `logger` asks for."""
    found: list = [wandb_run.MetricsFile(cell.folder, resumed_at)]
    chosen, plain = settings.logger, settings.plain()
    if chosen["name"] == "wandb":
        one = wandb_run.wandb_logger(
            cell.folder, settings=chosen, config=plain, run_id=cell.identity, name=cell.label, resumed_at=resumed_at
        )
        found += [one] if one else []
    if chosen["name"] == "tensorboard":
        found.append(TensorBoard(cell.folder, plain, resumed_at))
    return found


def build_trainer(settings: RunSettings, steps: int, loggers: list, callbacks: Sequence[pl.Callback]) -> pl.Trainer:
    """Returns Lightning's trainer.

    Args:
        settings: of the run.
        steps: optimizer steps of the whole fit.
        loggers: see `build_loggers`.
        callbacks: what takes part in the fit.
    """
    every, hardware = settings.eval_every, settings.hardware
    return pl.Trainer(
        accelerator=hardware.accelerator,
        devices=hardware.devices,
        strategy=hardware.strategy,
        precision=hardware.resolved_precision,  # type: ignore[arg-type]
        max_epochs=-1 if settings.steps else settings.epochs,
        max_steps=steps if settings.steps else -1,
        accumulate_grad_batches=settings.accumulate,
        val_check_interval=every * settings.accumulate if every else None,
        check_val_every_n_epoch=None if every else 1,
        logger=loggers,
        # without the environment it finds Slurm by itself and requeues what we requeue
        plugins=[LightningEnvironment(), CheckpointIO()],
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        log_every_n_steps=10,
        use_distributed_sampler=False,  # the task shares its batches out itself
    )


def silence_libraries() -> None:
    """Silences what libraries say on every run and no user can act on."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning.fabric", "httpx", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for module in ("pytorch_lightning", "lightning_fabric"):
        warnings.filterwarnings("ignore", module=module)
    silence_library_logging()
