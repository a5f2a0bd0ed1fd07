"""The probe: the batch on which a method's cost and the fidelity of its gradients are measured against dense."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from keepfrac.errors import UserError
from keepfrac.measurement import costs
from keepfrac.models.anatomy import anatomy
from keepfrac.models.load import load_for_task, load_tokenizer
from keepfrac.run.build import build_module, build_task, silence_libraries
from keepfrac.run.settings import RunSettings
from keepfrac.storage import results
from keepfrac.training.finetune import Batch, FineTune


class Probe:
    """The first validation rows, padded to their longest: equal for all methods, seeds and keep fractions.

    Args:
        module: the method.
        dense: the model before the method changed it.
        rows: sentences of the batch.
        precision: that of the run.
    """

    def __init__(self, module: FineTune, dense: nn.Module, rows: int, precision: str):
        self.module, self.dense, self.precision = module, dense, precision
        self._rows, self._tokenizer = rows, getattr(module.task, "tokenizer", None)
        self._batch = module.task.probe_batch(rows)

    def batch(self) -> Batch:
        """Returns the batch on the device of the model."""
        self.dense.to(self._device())
        return self.module.task.to_device(self._batch, self._device())

    def own_batch(self) -> Batch:
        """Returns the same rows as the method's model takes them: it may have a tokenizer of its own."""
        task = self.module.task
        if getattr(task, "tokenizer", None) is self._tokenizer:
            return self.batch()
        return task.to_device(task.probe_batch(self._rows), self._device())

    def _device(self) -> torch.device:
        return next(self.module.net.parameters()).device

    def steps(self) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
        """Returns the forward pass to the loss, of the method and of the dense model, in the run's precision."""
        batch, own_batch, task = self.batch(), self.own_batch(), self.module.task
        device = batch["input_ids"].device

        def own() -> Tensor:
            with costs.autocast(device, self.precision):
                return self.module.loss_of(own_batch)[0]

        def dense() -> Tensor:
            with costs.autocast(device, self.precision):
                return task.loss(self.dense(**task.inputs(batch)), batch)

        return own, dense

    def cost(self, times: int) -> dict:
        """Returns saved bytes, step seconds and peak, with a sentence on what they were measured on."""
        own, dense = self.steps()
        with self._unmoved():
            figures = costs.cost(self.module.net, self.dense, own, dense, times=times)
        rows, length = self._batch["input_ids"].shape
        real = int(self._batch["attention_mask"].sum())
        how = f"forward and backward, median of {times} interleaved"
        return {**figures, "probe": f"{rows} x {length} tokens ({real} real), {self.precision}, {how}"}

    def fidelity(self) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
        """Returns how near the method's gradients are to the dense ones: over all, and by matrix.

        Raises:
            UserError: the method has changed the model's shapes.
        """
        shapes = ({name: p.shape for name, p in net.named_parameters()} for net in (self.module.net, self.dense))
        if next(shapes) != next(shapes):
            raise UserError(
                f"method {self.module.name} changes the model's shapes: its gradients have no dense ones beside them"
                " (fidelity_every=null)"
            )
        was_training = self.module.net.training
        self.module.net.train(), self.dense.train()
        try:
            own, dense = self.steps()
            with self._unmoved(), self._equal_dropout():
                return costs.fidelity(self.module.net, self.dense, anatomy(self.dense), own, dense)
        finally:
            self.module.net.train(was_training)

    @contextmanager
    def _unmoved(self) -> Iterator[None]:
        """Puts the method's random choices back behind it: the probe is no part of the run."""
        module, saver = self.module, self.module.backward_saver
        own, saved = module.get_extra_state(), {} if saver is None else saver.state()
        try:
            yield
        finally:
            module.set_extra_state(own)
            if saver is not None:
                saver.load_state(saved)

    @contextmanager
    def _equal_dropout(self) -> Iterator[None]:
        """Gives both models the same dropout within it: by one seed; none where the method draws masks of its own."""
        saver = self.module.backward_saver
        nets = (self.module.net, self.dense) if saver is not None and saver.draws_masks else ()
        rates = [(m, m.p) for net in nets for m in net.modules() if isinstance(m, nn.Dropout)]
        for module, _ in rates:
            module.p = 0.0
        try:
            yield
        finally:
            for module, rate in rates:
                module.p = rate


def probe_of(folder: Path) -> Probe:
    """Returns the probe of a finished run: its method on its delivered weights.

    Raises:
        UserError: the folder holds no finished run.
    """
    found = results.read(folder)
    if found is None or found["status"] != "done":
        raise UserError(f"{folder}: not the folder of a finished run")
    silence_libraries()
    config = found["config"]
    config |= {"model": config["model"] | {"run": str(folder), "config": None, "tokenizer": None}}
    settings = RunSettings.of(config)
    task, model = build_task(settings), settings.model.plain()
    tokenizer = load_tokenizer(model)
    task.use(tokenizer)
    net = load_for_task(model, task, tokenizer)
    dense = copy.deepcopy(net)
    module = build_module(settings, net, task, 1)
    module.net.train()
    module.prepare(task.training_batches())
    module.attach_saver()
    return Probe(module, dense, settings.batch_size, found["provenance"]["precision"])


class Fidelity(pl.Callback):
    """Logs `fidelity/*` every few optimizer steps.

    Args:
        probe: the batch and the dense model.
        every: optimizer steps, >= 1.
    """

    def __init__(self, probe: Probe, every: int):
        self.probe, self.every, self._last = probe, every, 0

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        if trainer.global_step % self.every or trainer.global_step == self._last:
            return
        self._last = trainer.global_step
        figures, _ = self.probe.fidelity()
        module.log_dict({f"fidelity/{name}": value for name, value in figures.items()}, batch_size=1)
