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
        raise UserError(f"recompute_gelu: in a {type(net).__name__} a gate stands behind the activation function")
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


class RecomputedActivations(BackwardSaver):
    """`recompute_gelu`: the output of each feed-forward block's activation function is computed again."""

    def convert(self, net: nn.Module) -> Handle:
        return recompute_activations(net)


class CheckpointedLayers(BackwardSaver):
    """`checkpoint`: every layer is run again in the backward pass, by Transformers' switch.

    It changes no layer, so that another saver may be attached too.
    """

    def convert(self, net: Any) -> Handle:
        if not getattr(net, "supports_gradient_checkpointing", False):
            raise UserError(f"method checkpoint: a {type(net).__name__} cannot be checkpointed")
        if not net.is_activation_checkpointing:
            net.activation_checkpointing_enable({"use_reentrant": False})
        return Handle([net.activation_checkpointing_disable])
