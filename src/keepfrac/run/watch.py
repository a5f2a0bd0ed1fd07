"""What a person sees of a run under way: steps, loss, last score, time left."""

import logging
import os
import sys
import time
from datetime import timedelta

import pytorch_lightning as pl
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

log = logging.getLogger(__name__)
LINES = 10  # of a whole fit, where there is no terminal


def in_words(seconds: float) -> str:
    """Returns a time in hours, minutes and seconds, such as 1:02:03."""
    return str(timedelta(seconds=round(seconds)))


class Watch(pl.Callback):
    """Shows a bar in a terminal, and elsewhere a line for each tenth of the steps.

    Args:
        steps: optimizer steps of the whole fit.
        monitor: name of the score, such as "val/accuracy".
    """

    def __init__(self, steps: int, monitor: str):
        self.steps, self.monitor = steps, monitor
        self.score = ""
        self._first, self._begin, self._told = 0, 0.0, 0
        self._bar: Progress | None = None

    def on_train_start(self, trainer, module) -> None:
        self._first, self._begin, self._told = trainer.global_step, time.monotonic(), trainer.global_step
        if trainer.is_global_zero and sys.stdout.isatty() and not os.environ.get("KEEPFRAC_JOB"):
            columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
            self._bar = Progress(*columns, transient=True)
            self._bar.add_task("train", total=self.steps, completed=self._first)
            self._bar.start()

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        step = trainer.global_step
        due = step > self._told and (
            self._bar is not None or step * LINES // self.steps > self._told * LINES // self.steps
        )
        if not (due and trainer.is_global_zero):
            return
        self._told = step
        text = self._text(step, outputs)
        if self._bar is None:
            log.info("step %d of %d, %s", step, self.steps, text)
        else:
            self._bar.update(self._bar.task_ids[0], completed=step, description=text)

    def _text(self, step: int, outputs) -> str:
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        parts = [f"loss {float(loss):.4f}"] if isinstance(loss, Tensor) else []
        parts += [self.score] if self.score else []
        left = (time.monotonic() - self._begin) / max(1, step - self._first) * (self.steps - step)
        return ", ".join([*parts, f"{in_words(left)} left"])

    def on_validation_end(self, trainer, module) -> None:
        if self.monitor in trainer.callback_metrics:
            self.score = f"{self.monitor} {trainer.callback_metrics[self.monitor].item():.4f}"

    def on_train_end(self, trainer, module) -> None:
        self._stop()

    def on_exception(self, trainer, module, exception) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
