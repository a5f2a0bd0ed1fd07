"""S1: which of the frozen weights stay, by their size, by that of their update, or by that of the sum.

Scores are made for blocks of outputs: those of an update, and those of the rest (a packed linear has both). The blocks
form two groups, {those with an update} and {the rest}, as in DSEE, where these are {query, value} and all others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from keepfrac.adapters.layer import AdaptedLinear, Update
from keepfrac.errors import UserError
from keepfrac.prune.masks import top_masks
from keepfrac.tensors.layouts import is_transposed
from keepfrac.tensors.surgery import find

SCORES = ("w", "delta", "w_delta")
SCOPES = ("groups", "matrix", "global")


@dataclass(frozen=True)
class Block:
    """Outputs of a linear that have one update, or none.

    Attributes:
        weight: (outputs, inputs), a view.
        update: what is added to it, or None.
    """

    weight: Tensor
    update: Update | None

    def score(self, kind: str) -> Tensor:
        """Returns (outputs, inputs) |W|, |delta| or |W + delta|; without an update |W|."""
        if self.update is None or kind == "w":
            return self.weight.abs()
        return (self.update.delta() + (self.weight if kind == "w_delta" else 0.0)).abs()


def blocks_of(module: nn.Module) -> list[Block]:
    """Returns the blocks of a linear, in the order of its outputs."""
    weight = module.get_parameter("weight").detach()
    if not isinstance(module, AdaptedLinear):
        return [Block(weight if isinstance(module, nn.Linear) else weight.t(), None)]
    weight, found, done = module.oriented(weight), [], 0
    for part in sorted(module.parts(), key=lambda part: part.start):
        found += [Block(weight[done : part.start], None)] if part.start > done else []
        found.append(Block(weight[part.rows], part))
        done = part.start + part.outputs
    return found + ([Block(weight[done:], None)] if done < len(weight) else [])


@torch.no_grad()
def choose_s1(
    net: nn.Module, paths: Sequence[str], keep_frac: float, score: str, scope: str, present: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Masks of exactly the wanted share of the frozen weights.

    Args:
        net: the model.
        paths: of the linears.
        keep_frac: of each group, of each block, or of all together, in [0, 1].
        score: `w` | `delta` (where there is an update; |W| elsewhere) | `w_delta`, with the update's scale s.
        scope: `groups` | `matrix` | `global`.
        present: masks of an earlier step by parameter name: what they leave out never comes back.

    Returns:
        Parameter name -> boolean mask in the parameter's layout, True = keep.

    Raises:
        UserError: more is to be kept than `present` leaves.
    """
    blocks = {path: blocks_of(find(net, path)) for path in paths}
    groups: dict[str, dict[str, Tensor]] = {"updated": {}, "rest": {}}
    for path, parts in blocks.items():
        allowed = _rows_of(present.get(f"{path}.weight"), find(net, path), parts)
        for i, (block, still) in enumerate(zip(parts, allowed, strict=True)):
            group = "rest" if block.update is None else "updated"
            scored = block.score(score).float()
            groups[group][f"{path}/{i}"] = scored if still is None else scored.masked_fill(~still, -torch.inf)
    if scope == "global":
        groups = {"all": groups["updated"] | groups["rest"]}
    chosen: dict[str, Tensor] = {}
    for scores in groups.values():
        if scores:
            chosen |= top_masks(scores, keep_frac, "uniform" if scope == "matrix" else "global")
            _refuse_return(scores, chosen, keep_frac)
    return {
        f"{path}.weight": _joined(find(net, path), [chosen[f"{path}/{i}"] for i in range(len(parts))])
        for path, parts in blocks.items()
    }


def _rows_of(mask: Tensor | None, module: nn.Module, parts: Sequence[Block]) -> Sequence[Tensor | None]:
    if mask is None:
        return [None] * len(parts)
    return _oriented(module, mask).split([len(part.weight) for part in parts])


def _refuse_return(scores: Mapping[str, Tensor], chosen: Mapping[str, Tensor], keep_frac: float) -> None:
    back = sum(int((chosen[key] & scored.isneginf()).sum()) for key, scored in scores.items())
    if back:
        size = sum(scored.numel() for scored in scores.values())
        left = sum(int((~scored.isneginf()).sum()) for scored in scores.values())
        raise UserError(
            f"keep_frac {keep_frac:g} of weights of which this model's masks keep {left / size:.4f} already:"
            " a share of what was pruned before cannot come back"
        )


def _joined(module: nn.Module, parts: Sequence[Tensor]) -> Tensor:
    return _oriented(module, torch.cat(list(parts))).contiguous()


def _oriented(module: nn.Module, mask: Tensor) -> Tensor:
    return mask.t() if is_transposed(module) else mask
