"""`prune` and `mask_weights`: a stock model in, a smaller or a sparser one out, in any training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from keepfrac.adapters.surgery import adapted
from keepfrac.errors import UserError
from keepfrac.models.anatomy import Layer
from keepfrac.models.cut import counts_of, cut, encoder_layers, shape_of
from keepfrac.models.targets import linears_of
from keepfrac.prune.budget import UnitScores
from keepfrac.prune.cost import Cost, MacsCost, ParamsCost, fraction
from keepfrac.prune.importance import gate_gradients
from keepfrac.prune.masks import Masks, top_masks
from keepfrac.prune.scores import magnitude, random
from keepfrac.prune.select import SCOPES, Limits, Scope, select, select_layers
from keepfrac.prune.structure import Structure

Batch = Mapping[str, Tensor]
By = Literal["taylor", "magnitude", "random", "layers"]
BY = ("taylor", "magnitude", "random", "layers")
COSTS: dict[str, Callable[..., Cost]] = {"params": lambda shape, length: ParamsCost(shape), "macs": MacsCost}


def prune(
    model: PreTrainedModel,
    batches: Iterable[Batch] = (),
    keep_frac: float = 0.5,
    by: By = "taylor",
    *,
    rounds: int = 1,
    train: Callable[[PreTrainedModel], object] | None = None,
    loss: Callable[[PreTrainedModel, Batch], Tensor] | None = None,
    cost: Literal["params", "macs"] = "params",
    length: int = 128,
    scope: Scope = "family",
    align: Mapping[str, int] | None = None,
    seed: int = 0,
) -> PreTrainedModel:
    """Cuts heads and neurons, or whole layers, out of a model until a share of its cost is left.

    Without `train` it is one cut, or several that score again in between; train the result as any model to recover.
    With it, the model is trained after each round, so that what is scored next has recovered.

        small = keepfrac.prune(model, batches, keep_frac=0.5)
        small = keepfrac.prune(model, batches, keep_frac=0.3, rounds=4, train=lambda model: my_loop(model))

    Args:
        model: of a family of `models.families` that can be cut, with any head, dense or cut before; not changed
            without `train`. Restore what saves less, and merge updates, before.
        batches: for `taylor`: the model's own inputs by name, tensors (rows, length), with `labels`; some hundred
            rows do. They are moved to the model's device.
        keep_frac: the share of the dense original's cost that stays at most, in (0, 1].
        by: taylor, on which units the loss depends most (|dL/dz| of a gate z on each, Michel et al. 2019); magnitude,
            which own the largest weights; random; layers, whole layers from the bottom.
        rounds: of scoring and cutting, >= 1; each takes an equal part of what has to go.
        train: called with the cut model after each round; it trains in place.
        loss: (model, batch) -> sum over rows of their losses, a scalar; None: the model's own loss times the rows.
        cost: params (weights of the layers' linears) or macs (of one sentence of `length` tokens).
        length: tokens.
        scope: family (heads and neurons each by themselves, uneven over layers), layer (each layer alike), global.
        align: by family, "heads" and "neurons", kept counts are multiples of this; None: 1 and 8.
        seed: of `random`.

    Returns:
        The cut model, in the mode and on the device of `model`: a new one, or `model` where nothing had to go.

    Raises:
        UserError: an unknown word, a share that cannot be reached (the message says the range), batches without
            labels, or a model that cannot be cut.
    """
    rows = _checked(model, batches, keep_frac, by=by, rounds=rounds, cost=cost, scope=scope)
    of = COSTS[cost](shape_of(model), length)
    limits = Limits(align={"heads": 1, "neurons": 8, **(align or {})}, floor={"neurons": 1})
    start = float(fraction(of, counts_of(model)))
    for number in range(1, rounds + 1):
        target, have = start + (keep_frac - start) * number / rounds, float(fraction(of, counts_of(model)))
        if target < have:  # heads are coarse: a round may be ahead of what is asked
            model = cut(
                model, _choose(model, rows, target, by=by, cost=of, limits=limits, scope=scope, seed=seed, loss=loss)
            )
        if train is not None:
            train(model)
    return model


def _checked(model: PreTrainedModel, batches: Iterable[Batch], keep_frac: float, *, by, rounds, cost, scope) -> list:
    """The batches, as a list; raises a UserError for what cannot be."""
    for name, value, allowed in (("by", by, BY), ("cost", cost, COSTS), ("scope", scope, SCOPES)):
        if value not in allowed:
            raise UserError(f"{name}={value}: must be one of {', '.join(allowed)}")
    _check_share(keep_frac)
    if not isinstance(rounds, int) or rounds < 1:
        raise UserError(f"rounds={rounds}: must be a whole number >= 1")
    if adapted(model):
        raise UserError("prune: this model has low-rank updates; merge them first")
    rows = list(batches) if by == "taylor" else []
    if by == "taylor" and not rows:
        raise UserError("by=taylor scores units by the loss: it needs batches; by=magnitude needs none")
    return rows


def _check_share(keep_frac: float) -> None:
    if isinstance(keep_frac, bool) or not isinstance(keep_frac, int | float) or not 0 < keep_frac <= 1:
        raise UserError(f"keep_frac={keep_frac}: must be a number in (0, 1]")


def _choose(model, rows, target: float, *, by: By, cost: Cost, limits, scope, seed, loss) -> Structure:
    layers = encoder_layers(model)
    if by == "layers":
        return select_layers(counts_of(model), cost, target, "top")
    if by == "taylor":
        scores = _taylor(model, layers, rows, loss or _own_loss)
    else:
        scores = magnitude(model, layers) if by == "magnitude" else random(model, layers, seed)
    return select(scores, cost, target, limits=limits, scope=scope)


def _taylor(model: PreTrainedModel, layers: Sequence[Layer], rows: Sequence[Batch], loss: Callable) -> UnitScores:
    device, training = next(model.parameters()).device, model.training
    there = ({name: tensor.to(device) for name, tensor in batch.items()} for batch in rows)
    model.eval()
    try:
        return gate_gradients(model, layers, there, lambda batch: loss(model, batch))
    finally:
        model.train(training)


def _own_loss(model: PreTrainedModel, batch: Batch) -> Tensor:
    """The model's mean loss times the rows."""
    if "labels" not in batch:
        raise UserError("by=taylor: the batches have no labels; add them, or give loss=(model, batch) -> sum over rows")
    return model(**batch).loss * len(next(iter(batch.values())))


class MaskedWeights:
    """The handle on a model whose single weights are masked.

    Args:
        model: the model.
        masks: of its weights, True = keep.
        asked: keep_frac.
    """

    def __init__(self, model: PreTrainedModel, masks: Masks, asked: float) -> None:
        self.model, self.masks, self.asked = model, masks.to(next(model.parameters()).device), asked
        self.masks.apply_to(model)
        self._hooks: list[Any] = self.masks.mask_gradients(model)

    def apply(self) -> None:
        """Zeros what is not kept, in place: for an optimizer that moves a weight without a gradient."""
        self.masks.apply_to(self.model)

    def kept(self) -> dict[str, Any]:
        """Returns asked, achieved (share of the masked weights that stay), unit and `of`."""
        kept, whole = self.masks.counts()
        return {"asked": self.asked, "achieved": kept / whole, "unit": "weights", "of": f"{whole} weights of linears"}

    def report(self) -> list[dict[str, Any]]:
        """Returns one row per matrix: name, kept and all of its weights."""
        return [{"name": name, "kept": int(m.sum()), "of": m.numel()} for name, m in self.masks.items()]

    def state(self) -> dict[str, Tensor]:
        """Returns the masks by parameter name."""
        return dict(self.masks.items())

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes over the masks of `state()`."""
        self.masks.update(state)
        self.apply()

    def restore(self) -> None:
        """Lets all weights learn again; zeros stay until they do."""
        while self._hooks:
            self._hooks.pop().remove()


@torch.no_grad()
def mask_weights(
    model: PreTrainedModel, keep_frac: float = 0.5, scope: Literal["uniform", "global"] = "uniform"
) -> MaskedWeights:
    """Sets the smallest single weights of the layers' linears to zero, in place, and keeps them there in training.

    Their gradients are zeroed, so an optimizer that was made afterwards never moves them.

    Args:
        model: any of the known families.
        keep_frac: the share of the weights that stays, in (0, 1], to the nearest whole number.
        scope: uniform, of each matrix; global, of all together.

    Returns:
        The handle: `kept()`, `report()`, `state()`, `restore()`; `keepfrac.save(model, folder, masks=handle)`.

    Raises:
        UserError: another share or scope, or a model of an unknown family.
    """
    _check_share(keep_frac)
    names = [f"{path}.weight" for path in linears_of(model, pooler=False)]
    scores = {name: model.get_parameter(name).abs() for name in names}
    return MaskedWeights(model, Masks(top_masks(scores, keep_frac, scope)), keep_frac)
