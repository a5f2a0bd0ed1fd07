"""How much a head, a neuron or a rank matters, from the weights alone; and scores to compare against.

Scores that need data (first-order ones are gradients of gates that stand at 1: `prune.attach.FixedGates`) belong
to the methods that make them; they end in the same `UnitScores`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from keepfrac.errors import UserError
from keepfrac.prune.attach import read_counts, role_weight
from keepfrac.prune.budget import UnitScores
from keepfrac.prune.structure import LayerParts


@torch.no_grad()
def magnitude(net: nn.Module, layers: Sequence[LayerParts]) -> UnitScores:
    """Returns the l2 norm of all weights that a head (its slices of Q, K, V, O) or a neuron (row and column) owns.

    Heads and neurons own different numbers of weights: compare them within their family only.
    """
    heads, neurons = [], []
    for layer in layers:
        heads.append(_head_norms(net, layer))
        neurons.append(_neuron_norms(net, layer))
    return UnitScores(read_counts(net, layers), heads, neurons)


def random(net: nn.Module, layers: Sequence[LayerParts], seed: int) -> UnitScores:
    """Returns uniform scores from a generator of their own."""
    generator = torch.Generator().manual_seed(seed)
    counts = read_counts(net, layers)
    return UnitScores(
        counts,
        [torch.rand(int(c.heads), generator=generator) for c in counts],
        [torch.rand(int(c.neurons), generator=generator) for c in counts],
    )


def layers_to_keep(num_layers: int, kept: int, order: str) -> list[int]:
    """Returns which layers layer dropping keeps (Sajjad et al. 2023, section 3.1), for `structure.keep_layers`.

    Args:
        num_layers: of the model.
        kept: 1 to num_layers.
        order: `top` drops the last ones, `alternate` spreads the dropped ones evenly and keeps the first.
    """
    if not 1 <= kept <= num_layers:
        raise UserError(f"{kept} of {num_layers} layers to keep: it must be 1 to {num_layers}")
    if order == "top":
        return list(range(kept))
    if order == "alternate":
        return [i * num_layers // kept for i in range(kept)]
    raise UserError(f"layers are dropped in the order {order!r}: it must be top or alternate")


def _head_norms(net: nn.Module, layer: LayerParts) -> Tensor:
    if layer.attention_output is None:
        return torch.zeros(0)
    own = role_weight(net, layer, "attention_output").float().square().sum(0)
    squares = own.view(-1, layer.unit_width).sum(1)
    for role, width in (("query", layer.unit_width), ("key", layer.head_dim), ("value", layer.head_dim)):
        rows = role_weight(net, layer, role).float().square().sum(1)
        squares = squares + rows.view(-1, width).sum(1)
    return squares.sqrt()


def _neuron_norms(net: nn.Module, layer: LayerParts) -> Tensor:
    if layer.ffn_out is None:
        return torch.zeros(0)
    squares = role_weight(net, layer, "ffn_out").float().square().sum(0)
    for role in ("ffn_in",) if layer.ffn_gate is None else ("ffn_in", "ffn_gate"):
        squares = squares + role_weight(net, layer, role).float().square().sum(1)
    return squares.sqrt()
