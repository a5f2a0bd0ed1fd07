"""What a killed run needs to go on: random states, an atomic checkpoint every few steps, and the best weights so far.

Lightning restores the weights, the optimizer and its counters; it saves no random state and no position in the data.
With them a run that was killed in the middle of an epoch ends bitwise as the uninterrupted one (one process).
"""

import contextlib
import logging
import math
import random
import time
from pathlib import Path

import numpy
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.utilities import rank_zero_only
from torch import distributed

from keepfrac.errors import UserError
from keepfrac.storage.files import replacing, write_atomically
from keepfrac.training.checkpoint_files import BEST, CHECKPOINT, DAMAGED

log = logging.getLogger(__name__)


def random_state() -> dict:
    """Returns the states of python's, numpy's and torch's generators, as plain values that `weights_only` loads."""
    name, keys, position, has_gauss, gauss = numpy.random.get_state()
    return {
        "python": list(random.getstate()[1]),
        "numpy": [name, [int(key) for key in keys], int(position), int(has_gauss), float(gauss)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def random_states() -> list[dict]:
    """Returns the random states of all processes of the run, by rank."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return [random_state()]
    states: list = [None] * distributed.get_world_size()
    distributed.all_gather_object(states, random_state())
    return states


def restore_random_state(state: dict) -> None:
    """Sets the generators to a state of `random_state`."""
    random.setstate((3, tuple(state["python"]), None))
    name, keys, position, has_gauss, gauss = state["numpy"]
    numpy.random.set_state((name, numpy.array(keys, dtype=numpy.uint32), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([one.cpu() for one in state["cuda"]])


def save_atomically(content: dict, path: Path) -> None:
    """Writes what `loaded` reads, whole or not at all.

    Raises:
        UserError: the disk is full or the folder cannot be written; the former file is untouched.
    """
    try:
        # to an open file: given a path, torch says of a full disk only where its own counting went wrong
        with replacing(path) as new, new.open("wb") as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:
        if (of_disk := _of_disk(error)) is None:
            raise
        raise UserError(f"cannot write {path}: {of_disk}; free space and type the same command again") from error


def _of_disk(error: BaseException | None) -> OSError | None:
    """Returns the disk's own error behind what torch made of it."""
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error


class CheckpointIO(TorchCheckpointIO):
    """Lightning's, but that a file is there whole or not at all, and never in the system's temporary folder."""

    def save_checkpoint(self, checkpoint, path, storage_options=None) -> None:
        save_atomically(checkpoint, Path(path))


class Checkpoints(pl.Callback):
    """Keeps `resume.ckpt` (every few steps) and `best.pt` (weights of the best validation at or after settled_at).

    `best.pt` says its step and score itself: a kill may leave one of a later step than that of the resume checkpoint.

    Args:
        folder: where the two files live.
        every: optimizer steps between resume checkpoints, >= 1.
        monitor: name of the score, such as "val/accuracy".
        direction: "max" or "min".
    """

    def __init__(self, folder: Path, every: int, monitor: str, direction: str):
        self.folder, self.every, self.monitor = Path(folder), every, monitor
        self.sign = 1.0 if direction == "max" else -1.0
        self.best: float | None = None
        self.best_step: int | None = None
        self._saved_step = 0
        self._before, self._begun = 0.0, 0.0

    def state_dict(self) -> dict:
        return {"best": self.best, "best_step": self.best_step, "seconds": self.seconds()}

    def load_state_dict(self, state_dict: dict) -> None:
        self.best, self.best_step = state_dict["best"], state_dict["best_step"]
        self._before = state_dict["seconds"]
        if self.best is not None and "weights" in (found := loaded(self.folder / BEST) or {}):
            self.best, self.best_step = found["score"], found["step"]

    def seconds(self) -> float:
        """Returns the seconds of training so far, over all attempts."""
        return self._before + (time.monotonic() - self._begun if self._begun else 0.0)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        due = trainer.global_step >= self._saved_step + self.every
        if due and not trainer.fit_loop._should_accumulate() and not self._is_followed(trainer, module):
            self._saved_step = trainer.global_step
            trainer.save_checkpoint(self.folder / CHECKPOINT)

    @staticmethod
    def _is_followed(trainer, module) -> bool:
        """Whether this step's validation or figures come after it: who goes on from here would be without them."""
        if trainer.is_last_batch or module.progress == 1 or trainer._logger_connector.should_update_logs:
            return True
        done = trainer.fit_loop.epoch_loop.total_batch_idx + 1
        return trainer.check_val_every_n_epoch is None and done % trainer.val_check_batch == 0

    def on_train_start(self, trainer, module) -> None:
        self._saved_step = trainer.global_step
        self._begun = time.monotonic()

    def on_validation_end(self, trainer, module) -> None:
        if trainer.state.fn != "fit" or module.progress < module.settled_at:
            return
        score = trainer.callback_metrics[self.monitor].item()
        if self.best is None or math.isnan(self.best) or self.sign * score > self.sign * self.best:
            self.best, self.best_step = score, trainer.global_step
            if trainer.is_global_zero:
                found = {"step": self.best_step, "score": score, "weights": module.net.state_dict()}
                save_atomically(found, self.folder / BEST)
            trainer.strategy.barrier()  # the others will read it

    def load_best(self, net: torch.nn.Module) -> None:
        """Loads the best weights into `net`; without a validation so far it stays as it is."""
        if self.best is not None:
            found = torch.load(self.folder / BEST, weights_only=True, map_location="cpu")
            net.load_state_dict(found.get("weights", found))  # version 0.1.0 wrote them alone


def resumed_at(folder: Path) -> int:
    """Returns the step from which a killed run in a folder goes on; 0: it begins anew, and a line says why if need be.

    It goes on where the checkpoint can be read, and the best weights too where it had some: they cannot be made again.
    """
    checkpoint = folder / CHECKPOINT
    if not checkpoint.exists():
        return 0
    found = loaded(checkpoint)
    if found is not None and _has_best(folder, found):
        return found["global_step"]
    lost = checkpoint if found is None else folder / BEST
    log.warning("%s is %s: the run starts again", lost, "damaged" if lost.exists() else "gone")
    with contextlib.suppress(FileNotFoundError):  # each process of the run comes here
        checkpoint.replace(folder / DAMAGED)
    return 0


def _has_best(folder: Path, checkpoint: dict) -> bool:
    """Whether the best weights that a checkpoint counts on, if it does, can be read."""
    best = checkpoint["callbacks"].get(Checkpoints.__qualname__, {}).get("best")
    return best is None or loaded(folder / BEST) is not None


def loaded(path: Path) -> dict | None:
    """Returns what `torch.save` wrote, in memory only where it is used; None where it is gone or damaged."""
    try:
        return torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    except FileNotFoundError:
        return None
    except (OSError, MemoryError):
        raise  # that says nothing of the file
    except Exception as error:  # noqa: BLE001 - any damage: torch raises many kinds
        log.debug("%s: %s", path, error)
        return None


def backward_saver_state(checkpoint: dict) -> dict:
    """Returns the state of what saves less for the backward pass.

    Version 0.1.0 kept it among the weights, from where it is taken: that of `late` beside them, any other within the
    method's own state. It did not keep how many rows `late` had counted, so they are counted from here on.
    """
    if "backward_saver" in checkpoint:
        return checkpoint["backward_saver"]
    late = checkpoint["state_dict"].pop("saving._extra_state", None)
    if late is not None:
        named = {"hat": "normalized", "inner": "pre_activation"}
        storage = [{named.get(key, key): value for key, value in layer.items()} for layer in late["storing"]]
        return {"rng": late["late"], "storage": storage, "rows": [(0, 0)] * 2 * len(storage)}
    own = checkpoint["state_dict"].get("_extra_state", {})
    return {**(own.get("selection") or {}), **({"norms": own["norms"]} if own.get("norms") else {})}


class Progress(pl.Callback):
    """Writes progress.json every few seconds: what a sweep's live table shows of this run.

    Args:
        path: the file.
        steps: optimizer steps of the whole fit.
        monitor: name of the score.
    """

    def __init__(self, path: Path, steps: int, monitor: str):
        self.path, self.steps, self.monitor = Path(path), steps, monitor
        self.score: float | None = None
        self._written = 0.0

    @rank_zero_only
    def report(self, phase: str, step: int) -> None:
        """Writes the file: the phase and its step."""
        self._written = time.monotonic()
        text = f'{{"step": {step}, "steps": {self.steps}, "score": {_json(self.score)}, "phase": "{phase}"}}\n'
        write_atomically(self.path, text)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        first = trainer.global_step <= 1
        if trainer.is_global_zero and (first or time.monotonic() - self._written > 2.0):
            self.report("train", trainer.global_step)

    def on_validation_end(self, trainer, module) -> None:
        if self.monitor in trainer.callback_metrics:
            self.score = trainer.callback_metrics[self.monitor].item()


def _json(score: float | None) -> str:
    return "null" if score is None or score != score else repr(score)
