"""Trained coefficients of heads and neurons, 1 at first, that an l1 loss makes small where they do not matter.

Source: Chen et al. 2021 (EarlyBERT), section 3.2; used by Chen et al. 2023 (DSEE).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from keepfrac.prune.attach import FixedGates, gates_of
from keepfrac.prune.structure import LayerCounts, Structure

FAMILIES = ("heads", "neurons")


class Coefficients(nn.Module):
    """One coefficient c for each head and neuron; on a model by `prune.attach.attach`.

    Args:
        counts: of the model's layers.
    """

    def __init__(self, counts: Sequence[LayerCounts]) -> None:
        super().__init__()
        self.counts = list(counts)
        self.structure: Structure | None = None
        sizes = {f"{family}/{i}": int(getattr(c, family)) for i, c in enumerate(counts) for family in FAMILIES}
        self.values = nn.ParameterDict({key: nn.Parameter(torch.ones(size)) for key, size in sizes.items() if size})

    def freeze(self, structure: Structure) -> None:
        """Fixes the coefficients: 0 for units outside the structure, the others as they are, without gradient."""
        structure.check(self.counts)
        self.structure = structure

    def sizes(self, family: str) -> list[Tensor]:
        """Returns |c| of each layer's units, detached."""
        none = torch.zeros(0)
        keys = [f"{family}/{i}" for i in range(len(self.counts))]
        return [self.values[key].detach().abs() if key in self.values else none for key in keys]

    def l1(self, family: str) -> Tensor:
        """Returns the sum of |c| over all layers' units of a family."""
        return torch.stack([v.abs().sum() for key, v in self.values.items() if key.startswith(family)]).sum()

    def units(self, layer: int, family: str) -> Tensor | None:
        key = f"{family}/{layer}"
        if key not in self.values:
            return None
        if self.structure is None:
            return self.values[key]
        mask = torch.zeros_like(self.values[key])
        mask[list(getattr(self.structure.layers[layer], family))] = 1.0
        return self.values[key].detach() * mask

    def sub_layer(self, layer: int, part: str) -> Tensor | None:
        return None

    def rank(self, layer: int, role: str) -> Tensor | None:
        return None

    def dropped(self, layer: int) -> bool:
        return False

    def fixed(self) -> FixedGates:
        """As values without gradient: what a cut folds into the kept weights."""
        device = next(self.parameters()).device
        masks = gates_of(self.structure or Structure.full(self.counts), self.counts, device)

        def times(family: str, given: Sequence[Tensor]) -> list[Tensor]:
            keys = [f"{family}/{i}" for i in range(len(given))]
            pairs = zip(given, keys, strict=True)
            return [z * self.values[key].detach() if key in self.values else z for z, key in pairs]

        return FixedGates(times("heads", masks.heads or ()), times("neurons", masks.neurons or ()))
