"""WeightPruner: what the methods share that set single weights of the encoder to zero while they train.

The matrices are the six linears of each layer; embeddings, pooler, head, biases and norms stay whole. The share that
stays falls along a cubic ramp, by exact rank. What is pruned stays pruned; from `settled_at` the mask is frozen and
the rest of the fit recovers. The masks live with the model: the loop applies them after every step, and they are
delivered with the weights, so that later runs of any method keep the zeros.

A method overrides these, beside the hooks of FineTune:

    target(done)     the share that stays after `done` steps; None: the masks do not change here
    pattern          what stays together, and what competes with what
    score            magnitude, movement or fisher, with its `decay`
    regrow           share of what stays that each change gives back to pruned weights of the largest gradients
    mask_gradients   whether gradients and moments of pruned weights are zero
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from keepfrac.errors import UserError
from keepfrac.models.anatomy import anatomy
from keepfrac.prune.elements import ElementScores, SparsityPattern, masks_of, with_regrowth
from keepfrac.prune.masks import Masks
from keepfrac.prune.schedules import cubic
from keepfrac.settings import count, settings
from keepfrac.training.finetune import Batch, FineTune

UNIT = "weights of the encoder's linears"


@dataclass(frozen=True)
class PruningSchedule:
    """When the masks change.

    Args:
        start: progress at which pruning begins, in [0, 1).
        end: progress at which the share that was asked for is reached and the masks are frozen, in (start, 1].
        updates: how many times the masks change on the way, >= 1; fewer where there are fewer steps.
    """

    start: float
    end: float
    updates: int

    def every(self, total: int) -> int:
        """Returns the optimizer steps between two changes."""
        return max(1, round(total * (self.end - self.start) / self.updates))

    def target(self, done: int, total: int, keep_frac: float) -> float | None:
        """Returns the share that stays from this step on; None: the masks do not change here.

        Args:
            done: optimizer steps done, this one included.
            total: of the whole fit.
            keep_frac: what is asked for.
        """
        progress = done / max(1, total)
        if progress >= self.end:
            return keep_frac
        begun = done - int(self.start * total)
        if begun <= 0 or begun % self.every(total):
            return None
        return cubic(progress, keep_frac, start=self.start, end=self.end)


class WeightPruner(FineTune):
    """Fine-tuning in which single weights of the encoder become zero; the arguments are those of FineTune."""

    @settings
    class Settings(FineTune.Settings):
        updates: int = count("changes of the masks, about; fewer where there are fewer steps")

    settings: Settings

    pattern = SparsityPattern(scope="uniform", floor=0.0, structure="element", block=1)
    score, decay, regrow = "magnitude", 0.0, 0.0
    mask_gradients = True
    """Whether gradients and moments of pruned weights are zero."""

    def __init__(self, net, task, loop, settings: Settings):
        super().__init__(net, task, loop, settings)
        self.scores: ElementScores | None = None
        self.names: tuple[str, ...] = ()
        self.frozen = False

    # what a method gives ---------------------------------------------------------------------------------------------

    def target(self, done: int) -> float | None:
        """Returns the share that stays after `done` steps; None: the masks do not change here."""
        raise NotImplementedError

    # hooks -----------------------------------------------------------------------------------------------------------

    def prepare(self, batches: Iterable[Batch]) -> None:
        if self.keep_frac == 1 or self.names:
            return
        self.names = matrices_of(self.net)
        weights = self._weights()
        self.scores = ElementScores(self.score, self.decay, weights)
        if self.scores.learns and not self.loop.total_steps:
            raise UserError(f"method.score={self.score} with epochs=0: it needs gradients; use score=magnitude")
        everything = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
        self.masks = Masks(everything | (dict(self.masks.items()) if self.masks is not None else {}))
        masks_of(weights, self._present(), self.keep_frac, self.pattern)  # an error comes before training
        if self._falls_short():
            raise UserError(
                f"keep_frac={self.keep_frac}: the model that this run starts from has only {self.achieved:.4f} of"
                " these weights left"
            )
        if self.mask_gradients and not self.regrow:
            self.masks.mask_gradients(self.net)

    def after_step(self) -> None:
        if self.masks is None or self.scores is None or self.frozen:
            return
        if self.scores.learns:
            for name, weight in self._weights().items():
                if weight.grad is not None:
                    self.scores.observe(name, weight, weight.grad)
        done = self.global_step + 1  # Lightning counts the step after this hook
        if (share := self.target(done)) is not None:
            self._prune(share)
            self.frozen = done / self.loop.total_steps >= self.settled_at

    def finish(self, batches: Iterable[Batch]) -> None:
        self.prepare(batches)  # a run without training has not been prepared
        if self.masks is not None and self.names:
            if not self.loop.total_steps:
                self._prune(self.keep_frac)
            self.masks.apply_to(self.net)

    def kept(self) -> dict:
        if not self.names:
            return super().kept()
        zeros = sum(int((~mask).sum()) for mask in self._present().values())
        params = sum(parameter.numel() for parameter in self.net.parameters())
        return {
            "asked": self.keep_frac,
            "achieved": self.achieved,
            "unit": UNIT,
            "of": f"{len(self.names)} matrices ({self.pattern.structure}, {self.pattern.scope})",
            "compression_encoder": 1 / self.achieved,
            "compression_model": params / (params - zeros),
        }

    def get_extra_state(self) -> dict:
        return {"frozen": self.frozen}

    def set_extra_state(self, state: dict) -> None:
        self.frozen = state["frozen"]

    # -----------------------------------------------------------------------------------------------------------------

    @property
    def achieved(self) -> float:
        """The share that stays at this step."""
        present = self._present().values()
        return sum(int(mask.sum()) for mask in present) / sum(mask.numel() for mask in present)

    def _falls_short(self) -> bool:
        """Whether less is left than asked for, beyond what rounding to whole elements (blocks) takes of each matrix."""
        present = self._present().values()
        element = self.pattern.block**2 if self.pattern.structure == "block" else 1
        asked = self.keep_frac * sum(mask.numel() for mask in present)
        return asked - sum(int(mask.sum()) for mask in present) > len(self.names) * element / 2

    def _present(self) -> dict[str, Tensor]:
        assert self.masks is not None
        return {name: mask for name, mask in self.masks.items() if name in self.names}

    def _weights(self) -> dict[str, Tensor]:
        return {name: self.net.get_parameter(name) for name in self.names}

    @torch.no_grad()
    def _prune(self, share: float) -> None:
        """Brings the masks to the share that stays, the weights and their moments with them."""
        assert self.masks is not None and self.scores is not None
        weights, present = self._weights(), self._present()
        scores = {name: self.scores.of(name, weight) for name, weight in weights.items()}
        if self.regrow and all(weight.grad is not None for weight in weights.values()):
            gradients = {name: weight.grad for name, weight in weights.items() if weight.grad is not None}
            masks = with_regrowth(scores, gradients, present, keep_frac=share, share=self.regrow, pattern=self.pattern)
        else:
            masks = masks_of(scores, present, share, self.pattern)
        self.masks.update(masks)
        self.masks.apply_to(self.net)
        if self.mask_gradients and self.loop.total_steps:
            self.masks.mask_moments(self.net, self.trainer.optimizers[0])


def matrices_of(net) -> tuple[str, ...]:
    """Returns the names of the weights of the encoder's linears, of both factors where one is held as two."""
    paths = [path for layer in anatomy(net).layers for path in layer.linears]
    found = [
        f"{path}.{name}"
        for path in paths
        for name, parameter in net.get_submodule(path).named_parameters()
        if parameter.ndim == 2
    ]
    if not found:
        raise UserError("the model has no encoder linears to prune")
    return tuple(found)
