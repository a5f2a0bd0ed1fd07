"""Element masks (True = keep): exact by rank, held as buffers, re-applied after every step, saved with the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from keepfrac.errors import UserError

FILE = "masks.safetensors"


def num_kept(keep_frac: float, size: int) -> int:
    """Returns how many of `size` elements a keep fraction means: rounded to the nearest, halves up."""
    if not 0.0 <= keep_frac <= 1.0:
        raise UserError(f"keep_frac is {keep_frac}: it must be in [0, 1]")
    return int(keep_frac * size + 0.5)


def top_mask(scores: Tensor, kept: int) -> Tensor:
    """Returns a boolean mask of exactly the `kept` highest scores; among ties the first in memory order stay."""
    flat = scores.detach().flatten()
    if not 0 <= kept <= flat.numel():
        raise UserError(f"{kept} of {flat.numel()} elements to keep")
    if torch.isnan(flat).any():
        raise UserError("a score is not a number")
    mask = torch.zeros_like(flat, dtype=torch.bool)
    if kept:
        threshold = flat.kthvalue(flat.numel() - kept + 1).values
        torch.gt(flat, threshold, out=mask)
        ties = torch.nonzero(flat == threshold).flatten()
        mask[ties[: kept - int(mask.sum())]] = True
    return mask.view(scores.shape)


def top_masks(scores: Mapping[str, Tensor], keep_frac: float, scope: str, floor: float = 0.0) -> dict[str, Tensor]:
    """Masks for several matrices.

    Args:
        scores: by parameter name, higher is better.
        keep_frac: of each matrix (`uniform`) or of all together (`global`).
        scope: `uniform` or `global`.
        floor: share of its elements that each matrix keeps at least under `global`.
    """
    if scope == "uniform":
        return {name: top_mask(s, num_kept(keep_frac, s.numel())) for name, s in scores.items()}
    if scope != "global":
        raise UserError(f"scope is {scope!r}: it must be uniform or global")
    sizes = [s.numel() for s in scores.values()]
    kept, least = num_kept(keep_frac, sum(sizes)), sum(num_kept(floor, n) for n in sizes)
    if kept < least:
        raise UserError(f"keep_frac {keep_frac:g} keeps {kept} elements, the floors alone {least}")
    flat = torch.cat([_floored(s, floor).flatten() for s in scores.values()])
    parts = top_mask(flat, kept).split(sizes)
    return {name: part.view(s.shape) for (name, s), part in zip(scores.items(), parts, strict=True)}


def n_of_m_mask(scores: Tensor, n: int, m: int) -> Tensor:
    """Returns a boolean mask of exactly the n highest of every m consecutive scores along the last dimension."""
    if not 0 < n <= m or scores.shape[-1] % m:
        raise UserError(f"{n}:{m} on rows of {scores.shape[-1]}: it must hold 0 < n <= m, m a divisor of the row")
    groups = scores.detach().unflatten(-1, (-1, m))
    order = groups.argsort(dim=-1, descending=True, stable=True)[..., :n]
    return torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, order, True).flatten(-2)


class Masks(nn.Module):
    """Masks of a model's parameters, by name, as boolean buffers of a module that the training loop owns.

    Args:
        masks: parameter name -> boolean mask of its shape, True = keep.
    """

    def __init__(self, masks: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, mask in masks.items():
            if mask.dtype != torch.bool:
                raise UserError(f"the mask of {name} is {mask.dtype}: it must be bool, True = keep")
            self.register_buffer(_key(name), mask)

    def items(self) -> Iterable[tuple[str, Tensor]]:
        return [(_name(key), mask) for key, mask in self.named_buffers()]

    def update(self, masks: Mapping[str, Tensor]) -> None:
        """Overwrites existing masks."""
        for name, mask in masks.items():
            self.get_buffer(_key(name)).copy_(mask)

    @torch.no_grad()
    def apply_to(self, net: nn.Module) -> None:
        """Zeros what is not kept, in place; call after every optimizer step, whatever the method."""
        for name, mask in self.items():
            self._parameter(net, name).masked_fill_(~mask, 0.0)

    def mask_gradients(self, net: nn.Module) -> list[RemovableHandle]:
        """Hooks parameters: gradients of pruned elements become zero (before clipping), by the masks of each call."""
        return [self._parameter(net, n).register_hook(self._gradient_hook(_key(n))) for n, _ in self.items()]

    @torch.no_grad()
    def mask_moments(self, net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Zeros the optimizer's state (moments, momentum) of what is not kept."""
        for name, mask in self.items():
            for value in optimizer.state.get(self._parameter(net, name), {}).values():
                if isinstance(value, Tensor) and value.shape == mask.shape:
                    value.masked_fill_(~mask, 0.0)

    def counts(self) -> tuple[int, int]:
        """Returns (kept elements, all elements) of the masked parameters."""
        return sum(int(m.sum()) for m in self.buffers()), sum(m.numel() for m in self.buffers())

    def save(self, folder: Path) -> Path:
        """Writes `masks.safetensors` into the folder of a saved model, one byte an element."""
        from safetensors.torch import save_file

        path = Path(folder) / FILE
        save_file({name: mask.contiguous().cpu() for name, mask in self.items()}, path)
        return path

    @classmethod
    def load(cls, folder: Path) -> Masks | None:
        """Returns the masks saved with a model, or None where there are none.

        Raises:
            UserError: the file cannot be read.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = Path(folder) / FILE
        if not path.exists():
            return None
        try:
            return cls(load_file(path))
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} cannot be read as masks: {error}") from error

    def _gradient_hook(self, key: str):
        return lambda gradient: gradient.masked_fill(~self.get_buffer(key), 0.0)

    def _parameter(self, net: nn.Module, name: str) -> nn.Parameter:
        try:
            parameter = net.get_parameter(name)
        except AttributeError as error:
            raise UserError(f"the masks have {name}, the model has not") from error
        if parameter.shape != self.get_buffer(_key(name)).shape:
            raise UserError(f"{name} is {tuple(parameter.shape)}, its mask {tuple(self.get_buffer(_key(name)).shape)}")
        return parameter


def _floored(scores: Tensor, floor: float) -> Tensor:
    """Scores in which the best share `floor` of the elements cannot lose."""
    if not floor:
        return scores.detach()
    return scores.detach().masked_fill(top_mask(scores, num_kept(floor, scores.numel())), float("inf"))


def _key(name: str) -> str:
    return name.replace(".", "/")


def _name(key: str) -> str:
    return key.replace("/", ".")
