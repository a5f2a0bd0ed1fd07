"""The work of one run: build, fit, finish, deliver, score. It knows settings and nothing of Hydra."""

import copy
import logging
import time

import pytorch_lightning as pl
import torch

from keepfrac.distillation.examine import examine
from keepfrac.measurement import costs
from keepfrac.models.dense_reference import dense_original
from keepfrac.models.export import check_ready
from keepfrac.models.load import load_for_task, load_tokenizer, weights_note
from keepfrac.run import build, delivery, lineage
from keepfrac.run.identity import Cell
from keepfrac.run.probe import Fidelity, Probe
from keepfrac.run.settings import RunSettings
from keepfrac.run.watch import Watch
from keepfrac.storage.provenance import device_name
from keepfrac.tasks import account
from keepfrac.tracking import wandb_run
from keepfrac.training.checkpoint import Checkpoints, Progress, resumed_at
from keepfrac.training.checkpoint_files import CHECKPOINT
from keepfrac.training.distributed import RankInfo

log = logging.getLogger(__name__)


class Execution:
    """One run, from settings to what stands in its results.

    Args:
        settings: of the run.
        cell: its identity and folder.
        rank: this process among those of the run.
    """

    def __init__(self, settings: RunSettings, cell: Cell, rank: RankInfo):
        self.settings, self.cell, self.rank = settings, cell, rank
        self.precision = settings.hardware.resolved_precision
        build.silence_libraries()
        threads = settings.hardware.threads or rank.threads(torch.get_num_threads())
        if threads != torch.get_num_threads():
            torch.set_num_threads(threads)
        log.info("%s: %s, precision %s, %d threads", cell.label, settings.hardware.name, self.precision, threads)
        pl.seed_everything(settings.seed, workers=True, verbose=False)
        if settings.export["name"] != "none":
            check_ready(settings.export["name"])
        self._build_task()
        self._build_module()
        self._build_trainer()

    def _build_task(self) -> None:
        settings, path = self.settings, self.cell.folder / "progress.json"
        self.task = task = build.build_task(settings)
        self.tokenizer = load_tokenizer(settings.model.plain(), task.training_texts)
        self.limits = delivery.limits_of(self.tokenizer)
        self.trained_on, self.stages = lineage.trained_on(settings, task), lineage.stages(settings.model.run)

        def report_progress(done: int, of: int) -> None:
            Progress(path, of, "").report("augment", done)

        if grow := build.augmenter(settings, task, self.rank.is_rank_zero, report_progress):
            task.enlarge(grow)
        task.use(self.tokenizer)
        task.setup()
        for line in account.lines(task.describe()) if self.rank.is_rank_zero else ():
            log.info("%s", line)
        self.steps = build.total_steps(settings, task)

    def _build_module(self) -> None:
        task, model = self.task, self.settings.model.plain()
        net = load_for_task(model, task, self.tokenizer, learns=bool(self.steps))
        self.dense = copy.deepcopy(net)
        self.module = build.build_whole_module(self.settings, net, task, self.steps, self.tokenizer)

    def _build_trainer(self) -> None:
        settings, folder, monitor = self.settings, self.cell.folder, f"val/{self.task.best_metric}"
        self.keeper = Checkpoints(folder, settings.checkpoint_every, monitor, self.task.direction)
        self.progress = Progress(folder / "progress.json", self.steps, monitor)
        self.resumed_at = resumed_at(folder) if self.steps else 0
        self.loggers = build.build_loggers(settings, self.cell, self.resumed_at) if self.rank.is_rank_zero else []
        self.probe = Probe(self.module, self.dense, settings.batch_size, self.precision)
        callbacks: list[pl.Callback] = [self.keeper, self.progress, Watch(self.steps, monitor)]
        callbacks += [Fidelity(self.probe, settings.fidelity_every)] if settings.fidelity_every else []
        self.trainer = build.build_trainer(settings, self.steps, self.loggers, callbacks)

    def __call__(self) -> dict:
        """Does it all; returns the parts of results.json that come of it."""
        teacher = self._examine_teacher()
        train_seconds = self._fit() if self.steps else 0.0
        self.module.to(self.trainer.strategy.root_device)  # Lightning leaves it on the CPU
        costs = self._cost()
        saved = self._restore_modules()
        self.module.finish(self.task.training_batches())
        self._deliver()
        begin = time.monotonic()
        scores = self._score()
        seconds = {"train_seconds": round(train_seconds, 1), "eval_seconds": round(time.monotonic() - begin, 1)}
        outcome = {
            "best_metric": self.task.best_metric,
            "direction": self.task.direction,
            "scores": scores,
            "kept": {**self.module.kept(), **saved},
            "size": delivery.sizes(self.module.net, self.dense, self.cell.folder),
            "cost": {**costs, **seconds, **self._latency(), "steps": self.steps, "best_step": self.keeper.best_step},
        }
        outcome |= teacher
        wandb_run.summarise(self.loggers, outcome)
        return outcome | self._hand_over()

    def made(self) -> dict:
        """Returns what provenance learns while the run is made."""
        return {
            "device": device_name(self.settings.hardware.accelerator),
            "precision": self.precision,
            "threads": torch.get_num_threads(),
            "data": self.task.describe(),
            "trained_on": self.trained_on,
            "stages": self.stages,
            "weights": weights_note(self.settings.model.plain()),
        }

    def _examine_teacher(self) -> dict:
        """Scores the teacher, where there is one, before distillation."""
        if self.module.distiller is None:
            return {}
        teacher, device = self.module.distiller.teacher, self.trainer.strategy.root_device
        scores = examine(teacher, self.task, device, self.precision)
        log.info("teacher: %s", ", ".join(f"{name} {value:.4f}" for name, value in scores.items()))
        return {"teacher": {"scores": scores, "params": costs.parameters(teacher)}}

    def _fit(self) -> float:
        """Trains, and takes back the best weights; returns the seconds."""
        checkpoint = self.cell.folder / CHECKPOINT if self.resumed_at else None
        if checkpoint:
            log.info("goes on from step %d", self.resumed_at)
        try:
            self.trainer.fit(self.module, datamodule=self.task, ckpt_path=checkpoint, weights_only=True)
        except SystemExit as stop:  # Lightning's answer to Ctrl-C
            raise KeyboardInterrupt from stop
        self.keeper.load_best(self.module.net)
        return self.keeper.seconds()

    def _restore_modules(self) -> dict:
        """Puts the stock modules back, before a method finishes its model; returns what `backward` achieved."""
        saver = self.module.backward_saver
        if saver is None:
            return {}
        saver.detach()
        if self.module.replaces_backward:
            return {}  # the method's own figures say it
        said = ("asked", "achieved", "of", "how")
        return {f"backward_{key}": value for key, value in saver.kept().items() if key in said}

    def _cost(self) -> dict:
        times = self.settings.probe_steps
        if not (self.steps and times and self.rank.is_rank_zero):
            return {}
        self.progress.report("measure", self.steps)
        return self.probe.cost(times)

    def _latency(self) -> dict[str, float]:
        times = self.settings.probe_steps
        if not (times and self.rank.is_rank_zero):
            return {}
        pair = {"latency_seconds": self.module.net, "latency_seconds_dense": dense_original(self.dense)}
        device = self.trainer.strategy.root_device  # the two may have been left on different ones
        return costs.forward_seconds({name: net.to(device) for name, net in pair.items()}, 2 * times)

    def _deliver(self) -> None:
        """Writes model/ and takes it back exactly as a user would load it: scores are those of what is delivered."""
        tokenizer = getattr(self.task, "tokenizer", None) or self.tokenizer  # a method may have changed it
        tokenizer = delivery.limited(tokenizer, *self.limits)
        delivery.write_model(self.module, tokenizer, self.cell.folder, self.rank.is_rank_zero)
        self.module.net = delivery.read_model(self.cell.folder, self.task.head, self.settings.model.attention)

    def _score(self) -> dict[str, float]:
        self.progress.report("evaluate", self.steps)
        scores = {**self.trainer.validate(self.module, datamodule=self.task, verbose=False)[0]}
        scores |= self.trainer.test(self.module, datamodule=self.task, verbose=False)[0]
        for name, loader in self.task.extra_dataloaders().items():
            extra = self.trainer.test(self.module, dataloaders=loader, verbose=False)[0]
            scores |= {key.replace("test/", f"test/{name}_"): value for key, value in extra.items()}
        return {key: value for key, value in scores.items() if key.startswith(("val/", "test/"))}

    def _hand_over(self) -> dict:
        """Writes the examples of a task that generates, and the other form that `export` asks for."""
        if not self.rank.is_rank_zero:
            return {}
        delivery.write_examples(self.task.examples(), self.cell.folder)
        form, name = self.settings.export["name"], self.settings.task["name"]
        if form == "none":
            return {}
        rows = self.task.inputs(self.task.probe_batch(self.settings.batch_size))
        return {"export": delivery.try_export(self.module.net, form, self.cell.folder, rows, name)}
