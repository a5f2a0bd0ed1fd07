"""The work of one run: build, fit, finish, deliver, score. It knows plain settings and nothing of Hydra."""

import copy
import functools
import logging
import os
import sys
import time
import traceback
import warnings
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import LightningEnvironment

from keepfrac.distillation.build import distiller_of
from keepfrac.distillation.examine import examine
from keepfrac.errors import UserError
from keepfrac.measurement import costs
from keepfrac.models.dense_reference import dense_original
from keepfrac.models.export import check_ready
from keepfrac.models.load import load_masks, load_net, load_tokenizer, quieten, reload, save_model, weights_note
from keepfrac.run import delivery, lineage
from keepfrac.run.identity import Cell
from keepfrac.run.probe import Fidelity, Probe
from keepfrac.storage import results
from keepfrac.storage.build import build
from keepfrac.storage.provenance import device_name
from keepfrac.storage.redact import redact
from keepfrac.tensors.barrier import wait_for_all
from keepfrac.tracking import wandb_run
from keepfrac.tracking.tensorboard import TensorBoard
from keepfrac.training import distributed
from keepfrac.training.checkpoint import CHECKPOINT, Checkpoints, Progress
from keepfrac.training.loop import Loop, LoopSettings

log = logging.getLogger(__name__)


def build_task(settings: dict):
    """Returns the task, with the batch size of one process and one accumulated batch."""
    share = settings["batch_size"] // (settings["accumulate"] * settings["hardware"]["devices"])
    return build(settings["task"] | {"batch_size": share})


def build_module(settings: dict, net, task, total_steps: int):
    """Returns the method's LightningModule."""
    keys = {key: settings.get(key) for key in LoopSettings.names()}  # older runs lack some options
    loop = Loop.of(keys | {"total_steps": total_steps})
    module = build(settings["method"], net=net, task=task, loop=loop)
    beneath = settings.get("backward") or {"name": "none"}  # older runs know no such group
    if beneath["name"] != "none":
        module.backward_saver = build(beneath)
    return module


def total_steps(settings: dict, task) -> int:
    """Returns the optimizer steps of the whole fit."""
    if not settings["epochs"]:
        return 0
    if settings["steps"]:
        return settings["steps"]
    batches = task.batches_per_epoch(settings["hardware"]["devices"])
    return settings["epochs"] * -(-batches // settings["accumulate"])


class Execution:
    """One run, from settings to what stands in its results.

    Args:
        settings: the resolved configuration.
        cell: its identity and folder.
        precision: the resolved precision, "32-true" or "bf16-mixed".
        place: this process among those of the run.
    """

    def __init__(self, settings: dict, cell: Cell, precision: str, place: distributed.Place):
        self.settings, self.cell, self.precision, self.place = settings, cell, precision, place
        _quieten()
        threads = settings["hardware"]["threads"] or place.threads(torch.get_num_threads())
        if threads != torch.get_num_threads():
            torch.set_num_threads(threads)
        log.info("%s: %s, precision %s, %d threads", cell.label, settings["hardware"]["name"], precision, threads)
        pl.seed_everything(settings["seed"], workers=True, verbose=False)
        self._build()

    def _build(self) -> None:
        settings = self.settings
        self.form = settings["export"]["name"]
        if self.form != "none":
            check_ready(self.form)
        self.task = build_task(settings)
        self.tokenizer = load_tokenizer(settings["model"], self.task.training_texts)
        self.trained_on, self.stages = lineage.trained_on(settings, self.task), lineage.stages(settings)
        self._enlarge()
        self.task.use(self.tokenizer)
        self.task.setup()
        task, model = self.task, settings["model"]
        self.steps = total_steps(settings, task)
        net = load_net(model, task.head, task.labels, task.num_labels, len(self.tokenizer), bool(self.steps))
        net.config.problem_type = task.problem_type  # type: ignore[union-attr]
        self.dense = copy.deepcopy(net)
        self.module = build_module(settings, net, task, self.steps)
        self.module.masks = load_masks(model)
        self.module.distiller = distiller_of(settings, task, self.tokenizer, net) if self.steps else None
        monitor = f"val/{task.best_metric}"
        self.keeper = Checkpoints(self.cell.folder, settings["checkpoint_every"], monitor, task.direction)
        self.progress = Progress(self.cell.folder / "progress.json", self.steps, monitor)
        self.resumed_at = _resumed_at(self.cell.folder / CHECKPOINT) if self.steps else 0
        self.loggers = self._loggers()
        self.probe = Probe(self.module, self.dense, settings["batch_size"], self.precision)
        self.trainer = self._trainer()

    def _enlarge(self) -> None:
        """Gives the training split the rows of `augment`."""
        settings, path = self.settings, self.cell.folder / "progress.json"
        if settings["augment"]["name"] == "none" or not settings["epochs"]:
            return
        grow = functools.partial(
            build(settings["augment"]),
            task=self.task.name,
            leads=self.place.leads,
            device="cuda" if settings["hardware"]["accelerator"] == "gpu" else "cpu",
            bf16=self.precision == "bf16-mixed",
            tell=lambda done, of: Progress(path, of, "").tell("augment", done),
        )
        self.task.enlarge(grow)

    def _loggers(self) -> list:
        if not self.place.leads:
            return []
        loggers: list = [wandb_run.MetricsFile(self.cell.folder, self.resumed_at)]
        chosen = self.settings["logger"]
        if chosen["name"] == "wandb":
            one = wandb_run.wandb_logger(
                self.cell.folder, chosen, self.settings, self.cell.identity, self.cell.label, self.resumed_at
            )
            loggers += [one] if one else []
        if chosen["name"] == "tensorboard":
            loggers.append(TensorBoard(self.cell.folder, self.settings, self.resumed_at))
        return loggers

    def _trainer(self) -> pl.Trainer:
        settings, hardware = self.settings, self.settings["hardware"]
        watched = sys.stdout.isatty() and not os.environ.get("KEEPFRAC_JOB")
        callbacks: list[pl.Callback] = [self.keeper, self.progress]
        callbacks += [Fidelity(self.probe, settings["fidelity_every"])] if settings["fidelity_every"] else []
        callbacks += [pl.callbacks.RichProgressBar()] if watched else []
        every = settings["eval_every"]
        return pl.Trainer(
            accelerator=hardware["accelerator"],
            devices=hardware["devices"],
            strategy=hardware["strategy"],
            precision=self.precision,  # type: ignore[arg-type]
            max_epochs=-1 if settings["steps"] else settings["epochs"],
            max_steps=self.steps if settings["steps"] else -1,
            accumulate_grad_batches=settings["accumulate"],
            val_check_interval=every * settings["accumulate"] if every else None,
            check_val_every_n_epoch=None if every else 1,
            logger=self.loggers,
            plugins=[LightningEnvironment()],  # else it finds Slurm by itself and requeues what we requeue
            callbacks=callbacks,
            enable_progress_bar=watched,
            enable_model_summary=False,
            enable_checkpointing=False,
            num_sanity_val_steps=0,
            log_every_n_steps=10,
            use_distributed_sampler=False,  # the task shares its batches out itself
        )

    def __call__(self) -> dict:
        """Does it all; returns the parts of results.json that come of it."""
        taught = self._examine_teacher()
        train_seconds = self._fit() if self.steps else 0.0
        self.module.to(self.trainer.strategy.root_device)  # Lightning leaves it on the CPU
        costs = self._cost()
        beside = self._restore_modules()
        self.module.finish(self.task.training_batches())
        self._deliver()
        begin = time.monotonic()
        scores = self._score()
        if self.place.leads:
            delivery.write_examples(self.task.examples(), self.cell.folder)
        seconds = {"train_seconds": round(train_seconds, 1), "eval_seconds": round(time.monotonic() - begin, 1)}
        outcome = {
            "best_metric": self.task.best_metric,
            "direction": self.task.direction,
            "scores": scores,
            "kept": {**self.module.kept(), **beside},
            "size": delivery.sizes(self.module.net, self.dense, self.cell.folder),
            "cost": {**costs, **seconds, **self._latency(), "steps": self.steps, "best_step": self.keeper.best_step},
        }
        outcome |= taught
        wandb_run.summarise(self.loggers, outcome)
        if self.form != "none" and self.place.leads:
            outcome["export"] = self._export()
        return outcome

    def _restore_modules(self) -> dict:
        """Puts the stock modules back, before a method finishes its model; returns what `backward` achieved."""
        saver = self.module.backward_saver
        if saver is None:
            return {}
        saver.detach()
        if self.module.replaces_backward:
            return {}  # the method's own figures say it
        return {f"backward_{key}": value for key, value in saver.kept().items() if key in ("asked", "achieved", "of")}

    def made(self) -> dict:
        """Returns what provenance learns while the run is made."""
        return {
            "device": device_name(self.settings["hardware"]["accelerator"]),
            "precision": self.precision,
            "threads": torch.get_num_threads(),
            "data": self.task.describe(),
            "trained_on": self.trained_on,
            "stages": self.stages,
            "weights": weights_note(self.settings["model"]),
        }

    def _examine_teacher(self) -> dict:
        """Scores the teacher, where there is one, before anyone learns from it."""
        if self.module.distiller is None:
            return {}
        teacher, device = self.module.distiller.teacher, self.trainer.strategy.root_device
        scores = examine(teacher, self.task, device, self.precision)
        log.info("teacher: %s", ", ".join(f"{name} {value:.4f}" for name, value in scores.items()))
        return {"teacher": {"scores": scores, "params": costs.parameters(teacher)}}

    def _fit(self) -> float:
        checkpoint = self.cell.folder / CHECKPOINT if self.resumed_at else None
        if checkpoint:
            log.info("goes on from step %d", self.resumed_at)
        try:
            self.trainer.fit(self.module, datamodule=self.task, ckpt_path=checkpoint, weights_only=True)
        except SystemExit as stop:  # Lightning's answer to Ctrl-C
            raise KeyboardInterrupt from stop
        self.keeper.load_best(self.module.net)
        return self.keeper.seconds()

    def _cost(self) -> dict:
        times = self.settings["probe_steps"]
        if not (self.steps and times and self.place.leads):
            return {}
        self.progress.tell("measure", self.steps)
        return self.probe.cost(times)

    def _latency(self) -> dict[str, float]:
        times = self.settings["probe_steps"]
        if not (times and self.place.leads):
            return {}
        pair = {"latency_seconds": self.module.net, "latency_seconds_dense": dense_original(self.dense)}
        device = self.trainer.strategy.root_device  # the two may have been left on different ones
        return costs.forward_seconds({name: net.to(device) for name, net in pair.items()}, 2 * times)

    def _deliver(self) -> None:
        """Writes model/ and takes it back exactly as a user would load it: scores are those of what is delivered."""
        folder = self.cell.folder / "model"
        if self.place.leads:
            tokenizer = getattr(self.task, "tokenizer", None) or self.tokenizer  # a method may have changed it
            save_model(self.module.net, tokenizer, folder, self.module.masks)
            delivery.write_account(self.module.net, self.cell.folder)
        wait_for_all()
        self.module.net = reload(folder, self.task.head, self.settings["model"]["attention"])

    def _export(self) -> dict[str, str | int]:
        """Writes the other form; one that is refused costs neither the training nor the scores."""
        rows = self.task.inputs(self.task.probe_batch(self.settings["batch_size"]))
        task = self.settings["task"]["name"]
        try:
            return delivery.export_form(self.module.net, self.form, self.cell.folder, rows, task)
        except UserError as error:
            if not isinstance(error.__cause__, UserError):
                log.warning("%s", redact(traceback.format_exc()))
            return {"form": self.form, "error": redact(" ".join(str(error).split()))}

    def _score(self) -> dict[str, float]:
        self.progress.tell("evaluate", self.steps)
        scores = {**self.trainer.validate(self.module, datamodule=self.task, verbose=False)[0]}
        scores |= self.trainer.test(self.module, datamodule=self.task, verbose=False)[0]
        for name, loader in self.task.extra_dataloaders().items():
            extra = self.trainer.test(self.module, dataloaders=loader, verbose=False)[0]
            scores |= {key.replace("test/", f"test/{name}_"): value for key, value in extra.items()}
        return {key: value for key, value in scores.items() if key.startswith(("val/", "test/"))}


def probe_of(folder: Path) -> Probe:
    """Returns the probe of a finished run: its method on its delivered weights.

    Raises:
        UserError: the folder holds no finished run.
    """
    found = results.read(folder)
    if found is None or found["status"] != "done":
        raise UserError(f"{folder}: not the folder of a finished run")
    _quieten()
    settings = found["config"] | {
        "model": found["config"]["model"] | {"run": str(folder), "config": None, "tokenizer": None}
    }
    task = build_task(settings)
    tokenizer = load_tokenizer(settings["model"])
    task.use(tokenizer)
    net = load_net(settings["model"], task.head, task.labels, task.num_labels, len(tokenizer))
    dense = copy.deepcopy(net)
    module = build_module(settings, net, task, 1)
    module.net.train()
    module.prepare(task.training_batches())
    module.attach_saver()
    return Probe(module, dense, settings["batch_size"], found["provenance"]["precision"])


def _resumed_at(checkpoint: Path) -> int:
    """Returns the step at which a resume checkpoint was made; 0 where there is none that can be read."""
    try:
        return torch.load(checkpoint, weights_only=True, map_location="cpu")["global_step"]
    except FileNotFoundError:
        return 0
    except (OSError, MemoryError):
        raise  # that says nothing of the file
    except Exception as error:  # noqa: BLE001 - any damage: torch raises many kinds
        log.warning("%s is damaged (%s); the run begins anew", checkpoint, type(error).__name__)
        checkpoint.replace(checkpoint.with_suffix(".damaged"))
        return 0


def _quieten() -> None:
    """Silences what libraries say on every run and no user can act on."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning.fabric", "httpx", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for module in ("pytorch_lightning", "lightning_fabric"):
        warnings.filterwarnings("ignore", module=module)
    quieten()
