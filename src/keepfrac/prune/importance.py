"""How much the loss depends on each head and neuron: the gradient of its gate, to first order its removal's effect.

A gate z multiplies a unit's output: of a head its columns of the input x of the attention output projection, of a
neuron its column of the input of the second feed-forward linear. At z = 1

    dL_n/dz = sum over tokens and the unit's columns of x_n dL_n/dx_n,      importance = mean over rows n of |dL_n/dz|

(Michel et al. 2019, eq. (2), for heads; Molchanov et al. 2019, eq. (8), without the square). The absolute value is
taken row by row, so that rows of opposite sign do not cancel and the size of a batch changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from keepfrac.prune.attach import read_counts
from keepfrac.prune.budget import UnitScores
from keepfrac.prune.structure import LayerParts, LayerStructure, Structure

Batch = TypeVar("Batch")
Key = tuple[int, str]


@torch.enable_grad()
def gate_gradients(
    net: nn.Module, layers: Sequence[LayerParts], batches: Iterable[Batch], loss: Callable[[Batch], Tensor]
) -> UnitScores:
    """Returns the importance of each head and neuron; units behind a closed gate have 0.

    Args:
        net: the model, in eval mode; it gets no gradients.
        layers: the parts of its layers.
        batches: what `loss` takes; any number of rows each.
        loss: the sum (not the mean) over rows of their losses, a scalar.
    """
    counts = read_counts(net, layers)
    totals: dict[Key, Tensor] = {}
    rows = 0
    for batch in batches:
        caught: dict[Key, Tensor] = {}
        handles = _catch(net, layers, caught)
        try:
            total = loss(batch)
        finally:
            for handle in handles:
                handle.remove()
        rows += len(next(iter(caught.values())))
        gradients = torch.autograd.grad(total, list(caught.values()), allow_unused=True)
        for (key, x), gradient in zip(caught.items(), gradients, strict=True):
            width = layers[key[0]].unit_width if key[1] == "heads" else 1
            found = _per_unit(x.detach(), gradient, width)
            totals[key] = totals[key] + found if key in totals else found

    def mean(i: int, family: str) -> Tensor:
        return totals[i, family] / rows if (i, family) in totals else torch.zeros(0, dtype=torch.double)

    every = range(len(layers))
    return UnitScores(counts, [mean(i, "heads") for i in every], [mean(i, "neurons") for i in every])


def _catch(net: nn.Module, layers: Sequence[LayerParts], caught: dict[Key, Tensor]) -> list[RemovableHandle]:
    """Puts the inputs of the linears behind the gates into `caught` while the model runs."""

    def catching(key: Key) -> Callable:
        def hook(module: nn.Module, args: tuple) -> tuple:
            x = args[0] if args[0].requires_grad else args[0].detach().requires_grad_()  # below it all is frozen
            caught[key] = x
            return (x, *args[1:])

        return hook

    places = [((i, "heads"), layer.attention_output) for i, layer in enumerate(layers)]
    places += [((i, "neurons"), layer.ffn_out) for i, layer in enumerate(layers)]
    return [
        net.get_submodule(path).register_forward_pre_hook(catching(key)) for key, path in places if path is not None
    ]


def _per_unit(x: Tensor, gradient: Tensor | None, width: int) -> Tensor:
    """The sum over rows of |dL/dz| of the units of `width` columns of x (rows, ..., columns); float64 on the CPU."""
    if gradient is None:
        return torch.zeros(x.shape[-1] // width, dtype=torch.double)
    by_column = (x.float() * gradient.float()).flatten(1, -2).sum(1)
    return by_column.unflatten(-1, (-1, width)).sum(-1).abs().sum(0).double().cpu()


def drawn_labels(logits: Tensor, uniform: Tensor, problem: str) -> Tensor:
    """Returns labels drawn from what a model predicts, as its task has them.

    Its own prediction as a soft label would give a gradient of exactly 0; labels that are drawn from it give that of
    the model's own likelihood (the true Fisher information, Kunstner et al. 2019), and need no label.

    Args:
        logits: (rows, outputs).
        uniform: numbers in [0, 1), (rows, outputs): the draw.
        problem: classification: classes (rows,); multi_label: 0 and 1 (rows, outputs), each by its own sigmoid;
            regression: the prediction plus normal noise of variance 1, (rows,).
    """
    if problem == "classification":
        below = logits.double().softmax(-1).cumsum(-1) <= uniform[:, :1]
        return below.sum(-1).clamp(max=logits.shape[-1] - 1)
    if problem == "multi_label":
        return (uniform < logits.double().sigmoid()).float()
    assert problem == "regression", problem
    noise = torch.special.ndtri(uniform[:, 0].clamp(1e-12, 1 - 1e-12))
    return (logits.squeeze(-1).double() + noise).float()


def within(outer: Structure, inner: Structure) -> Structure:
    """Returns the structure that keeps, of the units that `outer` keeps, those that `inner` names by their place."""

    def chosen(units: Sequence[int], places: Sequence[int]) -> tuple[int, ...]:
        return tuple(units[place] for place in places)

    return Structure(
        tuple(
            LayerStructure(
                chosen(o.heads, i.heads),
                chosen(o.neurons, i.neurons),
                {role: chosen(units, i.ranks[role]) for role, units in o.ranks.items()},
                o.dropped or i.dropped,
            )
            for o, i in zip(outer.layers, inner.layers, strict=True)
        )
    )
