"""FineTune: the only training loop. A method is a subclass that overrides the hooks below, and nothing of Lightning's.

The defaults of the hooks are dense fine-tuning (`nosp`), so a comparison of two methods compares nothing but them:

    prepare(batches)        once per fit, before the optimizer exists: surgery, masks, gates, scores that need data
    param_groups()          parameters with lr, weight_decay, and optionally maximize, schedule, eps, clip (the norm of
                            all that have the same one together) or clip_each (of each tensor by itself)
    losses(batch, outputs)  named terms that are added to the task's loss
    after_step()            after each optimizer step: schedules, masks
    finish(batches)         once, after fit, on the best weights: harden, merge, cut
    kept()                  what was asked for, what was achieved, and of what
    metrics_to_log()        figures to be logged with the losses
    get_extra_state()       state that is neither parameter nor buffer, for checkpoints
    set_extra_state(state)  takes it back
    settled_at              progress from which the model has its final size
    replaces_backward       whether the method has a backward pass of its own, so that none can be combined with it

Masks that came with the model hold whatever the method: they are applied after each optimizer step.

The settings of a method are the fields of its nested `Settings`, by the names of the keys of its yaml.
"""

from collections.abc import Callable, Iterable

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from keepfrac.distillation.distiller import Distiller
from keepfrac.errors import UserError
from keepfrac.prune.masks import Masks
from keepfrac.prune.schedules import warmup_then_linear
from keepfrac.settings import Settings as AnySettings
from keepfrac.settings import settings, share, text
from keepfrac.sparse.protocol import BackwardSaver
from keepfrac.tasks.base import Task
from keepfrac.training.accumulation import GroupMean
from keepfrac.training.checkpoint import backward_saver_state, random_states, restore_random_state
from keepfrac.training.loop import Loop
from keepfrac.training.options import (
    EMA,
    FGM,
    add_gradients,
    by_depth,
    check_r_drop,
    divergence,
    refuse_without_dropout,
)

Batch = dict[str, Tensor]


class FineTune(pl.LightningModule):
    """Dense fine-tuning, and the loop of all methods.

    Args:
        net: a Hugging Face model; its inputs are those of `task`.
        task: the data, the loss and the metrics.
        loop: the settings shared by all methods.
        settings: the method's own.
    """

    @settings
    class Settings(AnySettings):
        where = "method"
        name: str = text("the method's name in results and logs")
        keep_frac: float = share("share that is kept; the method says of what", "(]")

    settled_at = 0.0
    """Progress from which the model has its final size; the best checkpoint is chosen from there on."""

    replaces_backward = False
    """Whether the method has a backward pass of its own, so that none can be combined with it."""

    def __init__(self, net: nn.Module, task: Task, loop: Loop, settings: Settings):
        super().__init__()
        self.net, self.loop, self.settings = net, loop, settings
        self.name, self.keep_frac = settings.name, settings.keep_frac
        self.masks: Masks | None = None
        self.distiller: Distiller | None = None
        self.backward_saver: BackwardSaver | None = None
        self.ema: EMA | None = None
        self.fgm = None if loop.fgm is None else FGM(loop.fgm)
        self._batch: Batch = {}
        self.group = GroupMean(1, 1, 1)  # until training begins
        self._task = (task,)  # in a tuple: a LightningDataModule is not a part of the model
        self.val_metrics, self.val_loss = task.metrics("val"), MeanMetric()
        self._pending_random_state: dict | None = None

    # hooks of a method ----------------------------------------------------------------------------------------------

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Changes the model before training; `batches` is a lazy iterable over training data."""

    def param_groups(self) -> list[dict]:
        """Returns the parameter groups of AdamW; biases and one-dimensional weights are not decayed."""
        named = [(name, p) for name, p in self.net.named_parameters() if p.requires_grad]
        decayed = [p for _, p in named if p.ndim > 1]
        plain = [p for _, p in named if p.ndim <= 1]
        shared = {"lr": self.loop.lr, "clip": self.loop.clip}
        return [
            {"params": decayed, "weight_decay": self.loop.weight_decay, **shared},
            {"params": plain, "weight_decay": 0.0, **shared},
        ]

    def losses(self, batch: Batch, outputs) -> dict[str, Tensor]:
        """Returns named scalar terms that are added to the task's loss."""
        return {}

    def after_step(self) -> None:
        """Runs after each optimizer step."""

    def finish(self, batches: Iterable[Batch]) -> None:
        """Brings the best weights into the form that is delivered."""

    def kept(self) -> dict:
        """Returns asked, achieved (fractions in [0, 1]), unit and `of`; unit None: nothing was left out."""
        return {"asked": self.keep_frac, "achieved": 1.0, "unit": None, "of": "everything"}

    def metrics_to_log(self) -> dict[str, Tensor | float]:
        """Returns figures of this step by their full names, such as "kept/target"."""
        return {}

    def get_extra_state(self) -> dict:
        """Returns the method's state that is neither parameter nor buffer, of plain values and tensors."""
        return {}

    def set_extra_state(self, state: dict) -> None:
        """Takes over what `get_extra_state` returned."""

    # the loop -------------------------------------------------------------------------------------------------------

    @property
    def task(self) -> Task:
        return self._task[0]

    @property
    def progress(self) -> float:
        """The share of training that is done, in [0, 1]."""
        return min(1.0, self.global_step / max(1, self.loop.total_steps))

    @property
    def progress_with_step(self) -> float:
        """The progress in `after_step`: Lightning counts the step after that hook."""
        return (self.global_step + 1) / max(1, self.loop.total_steps)

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self.net.train()  # from_pretrained leaves eval mode, in which dropout is silently off
            if self.loop.r_drop is not None:
                check_r_drop(self.task.head, self.task.problem)  # an error comes before training
            self.prepare(self.task.training_batches())
            self.attach_saver()
            if self.loop.r_drop is not None:
                refuse_without_dropout(self.net)
            if self.loop.ema is not None:
                self.ema = EMA(self.net, self.loop.ema)

    def attach_saver(self) -> None:
        """Attaches the saver that `backward` names to the model as `prepare` left it."""
        if self.backward_saver is not None:
            self.backward_saver.attach(self.net)

    def configure_optimizers(self):
        own = {"lr": self.loop.lr, "weight_decay": self.loop.weight_decay, "clip": self.loop.clip}
        distilled = [] if self.distiller is None else [{"params": list(self.distiller.parameters()), **own}]
        groups = [{"clip": None, **group} for group in [*self.param_groups(), *distilled] if group["params"]]
        if self.loop.layer_decay is not None:
            groups = by_depth(groups, self.net, self.loop.layer_decay)
        schedules = [group.pop("schedule", self.schedule) for group in groups]
        optimizer = torch.optim.AdamW(groups, fused=True)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, [self._by_step(schedule) for schedule in schedules])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _by_step(self, schedule: Callable[[float], float]) -> Callable[[int], float]:
        return lambda step: schedule(min(1.0, step / max(1, self.loop.total_steps)))

    def schedule(self, progress: float) -> float:
        """Returns the factor of the learning rate at `progress`."""
        return warmup_then_linear(progress, self.loop.warmup)

    def loss_of(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss of one batch, and the named terms whose sum it is, the task's first."""
        inputs = self.task.inputs(batch)
        if self.distiller is None:
            outputs, distill_losses, weight = self.net(**inputs), {}, 1.0
        else:
            (outputs, distill_losses), weight = self.distiller(self.net, inputs), self.distiller.recipe.w_label
        terms = {"task": weight * self.task.loss(outputs, batch), **distill_losses, **self.losses(batch, outputs)}
        if self.loop.r_drop is not None:
            again = self.net(**inputs)
            terms["task"] = (terms["task"] + weight * self.task.loss(again, batch)) / 2
            terms["r_drop"] = self.loop.r_drop * divergence(outputs.logits, again.logits, self.task.problem)
        return torch.stack([term.float() for term in terms.values()]).sum(), terms

    def training_step(self, batch: Batch, index: int) -> Tensor:
        total, terms = self.loss_of(batch)
        if not torch.isfinite(total):
            raise UserError(
                f"the loss is {total.item()} at step {self.global_step}"
                f" (lr={self.loop.lr}): lower lr, or set hardware.precision=32-true"
            )
        if len(terms) > 1:
            self.log_dict({f"loss/{name}": term.detach() for name, term in terms.items()}, batch_size=1)
        if figures := {**self.task.metrics_to_log(terms["task"].detach()), **self.metrics_to_log()}:
            self.log_dict(figures, batch_size=1)
        self.log("train/loss", total.detach(), prog_bar=True, batch_size=1)
        self.group.add(self.task.num_loss_terms(batch))
        return total

    def backward(self, loss: Tensor, *args, **kwargs) -> None:
        super().backward(loss * self.group.weight, *args, **kwargs)

    def on_before_optimizer_step(self, optimizer) -> None:
        self.group.divide(parameter for group in optimizer.param_groups for parameter in group["params"])

    def optimizer_step(self, *args, **kwargs) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.masks is not None:
            self.masks.apply_to(self.net)
        self.after_step()
        if self.ema is not None:
            self.ema.update(self.net)

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        by_norm: dict[float, list] = {}
        for group in optimizer.param_groups:
            if group.get("clip_each"):
                for parameter in group["params"]:
                    torch.nn.utils.clip_grad_norm_([parameter], group["clip_each"])
            elif group["clip"] is not None:
                by_norm.setdefault(group["clip"], []).extend(group["params"])
        for norm, parameters in by_norm.items():
            torch.nn.utils.clip_grad_norm_(parameters, norm)

    def on_before_backward(self, loss: Tensor) -> None:
        if self.fgm is not None:
            self.fgm.watch(self.net)

    def on_after_backward(self) -> None:
        if self.fgm is None:
            return
        trainer, batch = self.trainer, self._batch
        with trainer.precision_plugin.train_step_context(), self.fgm.on(self.net):
            loss = self.task.loss(self.net(**self.task.inputs(batch)), batch)
        parameters = [p for group in trainer.optimizers[0].param_groups for p in group["params"]]
        whole = not trainer.fit_loop._should_accumulate()
        add_gradients(loss * self.group.weight / self.group.accumulate, parameters, synchronise=whole)
        self.log("loss/adversarial", loss.detach(), batch_size=1)

    def on_validation_start(self) -> None:
        if self.ema is not None and self.trainer.state.fn == "fit":
            self.ema.swap_in(self.net, self.masks)

    def on_validation_end(self) -> None:  # after the callbacks': the best weights that they keep are the average
        if self.ema is not None and self.trainer.state.fn == "fit":
            self.ema.restore(self.net)

    def on_train_end(self) -> None:
        if self.ema is not None:
            self.ema.swap_in(self.net, self.masks)

    def on_train_start(self) -> None:
        trainer = self.trainer
        self.group = GroupMean(trainer.accumulate_grad_batches, trainer.world_size, self.task.batch_size)
        if self.global_rank:  # each process has a dropout of its own
            torch.manual_seed(torch.initial_seed() + 1_000_003 * self.global_rank)

    def on_train_epoch_start(self) -> None:
        self.task.set_epoch(self.current_epoch)

    def on_validation_epoch_start(self) -> None:
        self.start_scores("val")

    def on_test_epoch_start(self) -> None:
        self.start_scores("test")

    def start_scores(self, split: str) -> None:
        """Takes fresh metrics of "val" or "test"."""
        self.val_metrics = self.task.metrics(split).to(self.device)
        self.val_loss.reset()

    def validation_step(self, batch: Batch, index: int) -> None:
        outputs = self.net(**self.task.inputs(batch))
        task = self.task
        predictions, targets = task.scored(self.net, outputs, batch)
        self.val_metrics.update(predictions, targets)
        self.val_loss.update(task.loss(outputs, batch).float(), weight=task.num_loss_terms(batch))

    def on_validation_epoch_end(self) -> None:
        self._log_scores("val")

    test_step = validation_step

    def on_test_epoch_end(self) -> None:
        self._log_scores("test")

    def _log_scores(self, split: str) -> None:
        scores = {name: value.float() for name, value in self.val_metrics.compute().items()}
        self.log_dict(
            {f"{split}/{name}": value for name, value in (scores | {"loss": self.val_loss.compute()}).items()}
        )
        if split == "val" and self.trainer.state.fn == "fit":
            kept = {key: value for key, value in self.kept().items() if isinstance(value, int | float)}
            self.log_dict({f"kept/{key}": float(value) for key, value in kept.items()})

    # resume ---------------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        batches = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
        checkpoint["position"] = {"epoch": self.current_epoch, "batch": batches}
        checkpoint["random_states"] = random_states()
        if self.ema is not None:
            checkpoint["averages"] = self.ema.state_dict()
        if self.backward_saver is not None:
            checkpoint["backward_saver"] = self.backward_saver.state()

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self.task.start_at(**checkpoint["position"])
        if self.ema is not None:
            self.ema.load_state_dict(checkpoint["averages"])
        if self.backward_saver is not None:
            self.backward_saver.load_state(backward_saver_state(checkpoint))
        states = checkpoint["random_states"]
        self._pending_random_state = states[self.global_rank % len(states)]

    def on_train_batch_end(self, outputs, batch: Batch, index: int) -> None:
        if self.progress == 1:
            self.trainer.should_stop = True  # Lightning then validates before it stops

    def on_train_batch_start(self, batch: Batch, index: int) -> None:
        self._batch = batch
        if self._pending_random_state is not None:  # here: nothing draws between this point and the forward pass
            restore_random_state(self._pending_random_state)
            self._pending_random_state = None
