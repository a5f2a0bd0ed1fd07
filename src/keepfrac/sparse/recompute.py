"""`recompute_activations`: the second linear of each feed-forward block computes its input again in the backward pass.

The activation function saves its input h, and the linear behind it saves the function's output a, as wide again: a is
the function of h, so it need not be saved. Exact; it costs the function once more, and no matrix product.
"""

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from keepfrac.errors import UserError
from keepfrac.models.anatomy import anatomy
from keepfrac.models.pruned import LowRankLinear
from keepfrac.settings import settings
from keepfrac.sparse.protocol import BackwardSaver, Handle
from keepfrac.tensors.change_class import change_class
from keepfrac.tensors.surgery import find, replace


class _OfActivation:
    """Mixed into a linear's class: it applies the activation function itself, and saves what enters that."""

    activation: nn.Module
    training: bool

    def _both(self, h: Tensor) -> Tensor:
        return super().forward(self.activation(h))  # type: ignore[misc]

    def forward(self, h: Tensor) -> Tensor:
        if not (self.training and h.requires_grad):
            return self._both(h)
        # it stops as soon as the linear's input is there again: the product itself is not repeated
        return checkpoint(self._both, h, use_reentrant=False, preserve_rng_state=False)


class LinearOfActivation(_OfActivation, nn.Linear):
    """An `nn.Linear` with the activation function in front of it."""


class LowRankOfActivation(_OfActivation, LowRankLinear):
    """A linear held as two factors, with the activation function in front of it."""


CLASSES: dict[type, Any] = {nn.Linear: LinearOfActivation, LowRankLinear: LowRankOfActivation}


def recompute_activations(net: nn.Module) -> Handle:
    """Makes every feed-forward block save its activation function's input alone, in place.

    Parameters, their names and the results stay. Sub-layers that a cut removed are skipped.

    Raises:
        UserError: no feed-forward block, an activation function with parameters, or a linear of an unknown kind.
    """
    layers = anatomy(net).layers
    if any(layer.ffn_gate for layer in layers):
        raise UserError("recompute_gelu: a gate stands behind this model's activation function")
    pairs = [(layer.activation, layer.ffn_out) for layer in layers]
    there = [(function, path) for function, path in pairs if function is not None and path is not None]
    if not there:
        raise UserError(f"{type(net).__name__} has no feed-forward block: nothing would be recomputed")
    for function, path in there:
        if type(find(net, path)) not in CLASSES or list(find(net, function).parameters()):
            raise UserError(
                f"recompute_gelu needs a plain linear behind a function without parameters; {path} is"
                f" {find(net, path)!r} behind {find(net, function)!r}"
            )
    undo: list[Callable[[], None]] = []
    for function, path in there:
        linear, activation = find(net, path), find(net, function)
        replace(net, function, nn.Identity())
        undo.append(functools.partial(replace, net, function, activation))
        undo.append(change_class(linear, CLASSES[type(linear)], activation=activation).undo)
    return Handle(undo)


class ExactSaver(BackwardSaver):
    """A way that leaves nothing out of any gradient."""

    @settings
    class Settings(BackwardSaver.Settings):
        def check(self) -> None:
            super().check()
            if self.keep_frac != 1:
                raise self.error("keep_frac", f"{self.name} leaves nothing out of any gradient: must be 1")


class RecomputedActivations(ExactSaver):
    """`recompute_gelu`: the output of each feed-forward block's activation function is computed again."""

    def convert(self, net: nn.Module) -> Handle:
        return recompute_activations(net)


class CheckpointedLayers(ExactSaver):
    """`checkpoint`: every layer is run again in the backward pass, by Transformers' switch.

    It changes no layer, so that another saver may be attached too. Where the switch is on already it stays as it is.
    """

    def convert(self, net: Any) -> Handle:
        if not getattr(net, "supports_gradient_checkpointing", False):
            raise UserError(f"checkpoint: a {type(net).__name__} has no gradient checkpointing")
        if net.is_activation_checkpointing:
            return Handle([])
        asked_before = bool(getattr(net, "_require_grads_hooks", None))  # the switch asks gradients of embeddings too
        net.activation_checkpointing_enable({"use_reentrant": False})
        others = [] if asked_before else [net.disable_input_require_grads]
        return Handle([net.activation_checkpointing_disable, *others])
