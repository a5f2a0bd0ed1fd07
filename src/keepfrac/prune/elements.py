"""Which single weights stay: scores of elements, and masks of any structure from them, exact by rank.

    magnitude   |w|
    movement    sum over steps of -w dL/dw: a weight that grows away from zero matters (Sanh et al. 2020, eq. (5))
    fisher      w^2 F, F the moving average of (dL/dw)^2: the diagonal of Kurtic et al. 2022 (oBERT), eq. (9)

Structures: single elements; n of every m neighbours in a row; square blocks, scored by their mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from keepfrac.errors import UserError
from keepfrac.prune.masks import n_of_m_mask, top_masks

SCORES = ("magnitude", "movement", "fisher")
GROUPS = {"2:4": (2, 4), "4:8": (4, 8)}
STRUCTURES = ("element", *GROUPS, "block")
SCOPES = ("uniform", "global")

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class SparsityPattern:
    """What stays together, and what competes with what.

    Args:
        scope: uniform (the same share of each matrix) | global (all matrices compete).
        floor: under global, the share of its elements that each matrix keeps at least, as a part of the share that
            is asked for, in [0, 1].
        structure: element | 2:4 | 4:8 | block.
        block: edge of a block, >= 1.
    """

    scope: str
    floor: float
    structure: str
    block: int


def masks_of(scores: Tensors, present: Tensors, keep_frac: float, pattern: SparsityPattern) -> dict[str, Tensor]:
    """Returns masks (True = keep) of the highest scores, exactly as many as asked, among those that are present.

    On the way to n:m, when more than n of m stay, the n best of every m neighbours are safe from all others.

    Args:
        scores: by parameter name, higher is better, (rows, columns).
        present: what may stay, boolean.
        keep_frac: of each matrix or of all together, rounded to the nearest number of elements (blocks).
        pattern: structure and scope.

    Raises:
        UserError: a matrix cannot be divided so.
    """
    own = {name: s.float().masked_fill(~present[name], -torch.inf) for name, s in scores.items()}
    if pattern.structure == "block":
        own = {name: _pooled(name, s, pattern.block) for name, s in own.items()}
    elif pattern.structure != "element":
        own = {n: s.masked_fill(n_of_m_mask(s, *GROUPS[pattern.structure]), torch.inf) for n, s in own.items()}
    masks = top_masks(own, keep_frac, pattern.scope, pattern.floor * keep_frac)
    if pattern.structure == "block":
        edge = pattern.block
        masks = {n: m.repeat_interleave(edge, 0).repeat_interleave(edge, 1) for n, m in masks.items()}
    return {name: mask & present[name] for name, mask in masks.items()}


def with_regrowth(
    scores: Tensors, growth: Tensors, present: Tensors, keep_frac: float, share: float, pattern: SparsityPattern
) -> dict[str, Tensor]:
    """Returns masks in which a share of what stays is taken by the highest `growth` in place of the scores.

    The drop and grow of Evci et al. 2020 (RigL), with dL/dw as growth.
    """
    safe = masks_of(scores, present, keep_frac * (1 - share), pattern)
    everything = {name: torch.ones_like(mask) for name, mask in safe.items()}
    second = {name: growth[name].abs().float().masked_fill(safe[name], torch.inf) for name in safe}
    return masks_of(second, everything, keep_frac, pattern)


def _pooled(name: str, scores: Tensor, edge: int) -> Tensor:
    """The mean of each block."""
    rows, columns = scores.shape
    if edge < 1 or rows % edge or columns % edge:
        raise UserError(f"method.block={edge}: {name} of {rows} x {columns} cannot be divided into such blocks")
    return scores.view(rows // edge, edge, columns // edge, edge).mean((1, 3))


class ElementScores(nn.Module):
    """Scores of the elements of some matrices; their gradient statistics are buffers.

    Args:
        kind: magnitude | movement | fisher.
        decay: of fisher's moving average, in [0, 1).
        sizes: parameter name -> tensor of its shape and device.
    """

    def __init__(self, kind: str, decay: float, sizes: Tensors) -> None:
        super().__init__()
        self.kind, self.decay = kind, decay
        for name, tensor in sizes.items() if self.learns else ():
            self.register_buffer(name.replace(".", "/"), torch.zeros_like(tensor, dtype=torch.float32))

    @property
    def learns(self) -> bool:
        """Whether the scores need gradients."""
        return self.kind != "magnitude"

    @torch.no_grad()
    def observe(self, name: str, weight: Tensor, gradient: Tensor) -> None:
        """Takes in one step's gradient of a matrix."""
        memory = self.get_buffer(name.replace(".", "/"))
        if self.kind == "movement":
            memory.sub_(weight * gradient)
        else:
            memory.mul_(self.decay).add_(gradient.square(), alpha=1 - self.decay)

    @torch.no_grad()
    def of(self, name: str, weight: Tensor) -> Tensor:
        """Returns the scores of a matrix, of its shape."""
        if self.kind == "magnitude":
            return weight.detach().abs()
        memory = self.get_buffer(name.replace(".", "/"))
        return memory if self.kind == "movement" else weight.detach().square() * memory
