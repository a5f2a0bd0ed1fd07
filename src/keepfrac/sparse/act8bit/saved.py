"""What autograd saves inside a network, stored in 8 bits by saved-tensor hooks.

Each row of floating-point numbers has its scales, in the int8 format of `kernels.plain`, and a tensor that several
operations save is stored once. Untouched, and exact, are

    integers, booleans     of them the codes and scales that are stored already
    parameters, buffers    their views and casts too
    small tensors          fewer than SMALL numbers
    statistics of rows     one number for a row or a head (a LayerNorm's deviation, the logsumexp of a fused attention):
                           few beside the activations, and each counts for a whole row
    what has no code       NaN, infinity, and numbers so large that all others of the row would be 0
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

from keepfrac.sparse.act8bit.settings import Act8bitSettings
from keepfrac.sparse.kernels import kernels_for
from keepfrac.sparse.kernels.plain import GROUPS
from keepfrac.tensors.saved import OwnTensors

SMALL = 4096
SHORT = 8  # numbers of a row, below which a scale for it costs more than it saves
STATISTICS = 16  # how many times fewer than a linear's input
LARGE_SCALE = 1e30

Hook = Callable[[Any], Any]


class Stored(NamedTuple):
    """Rows as they are stored: codes (rows, width) or numbers, and scales, whose bits are read as int16."""

    data: Tensor
    scales: Tensor

    def in_rows_of(self, width: int) -> "Stored | None":
        """Returns the same numbers as rows of another width; None where scales would go across rows."""
        own, group = self.data.shape[1], GROUPS.get(self.data.dtype, 1)
        if own == width:
            return self
        if self.data.numel() % width or own % group or width % group:
            return None
        data = self.data.view(-1, width)
        return Stored(data, self.scales.view(len(data), -1) if self.scales.numel() else self.scales)

    def read(self, kernels: Any, index: Tensor | None, weight: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Returns rows `index` (None: all) times their factors: (len(index), width) in `dtype`."""
        scales = self.scales.view(torch.bfloat16)
        return kernels.unpack(self.data, scales, index, None, None, weight, dtype)


class Whole(NamedTuple):
    """A saved tensor as it is, given to the hooks around."""

    kept: Any


class Rounded(NamedTuple):
    """A saved tensor that is stored; its two parts were given to the hooks around.

    Args:
        data: see `Stored`.
        scales: likewise.
        shape: of the tensor with its dimensions in the order of memory.
        order: these dimensions.
        dtype: of the tensor.
    """

    data: Any
    scales: Any
    shape: torch.Size
    order: tuple[int, ...]
    dtype: torch.dtype


class SavedTensors:
    """Stores what is saved in the forward passes of a module, and the inputs of its linears.

    Args:
        net: the network, whose parameters and buffers stay.
        module: the part of it whose forward passes are watched.
        settings: `store` and `kernels`.
    """

    def __init__(self, net: nn.Module, module: nn.Module, settings: Act8bitSettings) -> None:
        self.net, self.settings = net, settings
        self.bytes_dense = self.bytes_kept = 0
        self._open: list[saved_tensors_hooks | None] = []
        self._found: dict[tuple, tuple[StorageWeakRef, Stored]] = {}
        self._own: OwnTensors | None = None
        self._statistics = 0
        self.hooks = [
            module.register_forward_pre_hook(self._begin),
            module.register_forward_hook(self._end, always_call=True),
        ]

    def _begin(self, module: nn.Module, _args: tuple) -> None:
        watched = module.training and torch.is_grad_enabled() and self.settings.store != "exact"
        hooks = None
        if watched and not any(self._open):
            self.bytes_dense = self.bytes_kept = self._statistics = 0
            self._own = OwnTensors(self.net)
            pack, unpack = torch._C._autograd._top_saved_tensors_default_hooks(True) or (_same, _same)
            hooks = saved_tensors_hooks(
                lambda tensor: self._pack(tensor, pack), lambda kept: self._unpack(kept, unpack)
            )
            hooks.__enter__()
        self._open.append(hooks)

    def _end(self, *_: Any) -> None:
        hooks = self._open.pop() if self._open else None
        if hooks is not None:
            hooks.__exit__()
            self._found, self._own = {}, None

    def rows(self, x: Tensor) -> tuple[Stored, int]:
        """Returns the input (..., width) of a linear as stored, and how many bytes that takes that were not yet."""
        flat = x.detach().reshape(-1, x.shape[-1]).contiguous()
        self._statistics = max(self._statistics, flat.numel() // STATISTICS)
        kind = self.settings.storage.dtype("normalized", x.dtype)
        stored, new = self._stored(flat, kind)
        if stored is None:
            stored, new = Stored(flat, torch.empty(0, dtype=torch.int16, device=x.device)), flat.nbytes
        return stored, new

    def _stored(self, flat: Tensor, kind: torch.dtype) -> tuple[Stored | None, int]:
        """(rows, width) as stored, new bytes; None where the numbers have no code, or are stored as they are."""
        if kind == flat.dtype:
            return None, 0
        storage = flat.untyped_storage()
        key = (storage._cdata, flat.storage_offset(), flat.numel(), flat.dtype, flat._version)
        if key in self._found and not self._found[key][0].expired():
            known = self._found[key][1].in_rows_of(flat.shape[1])
            if known is not None:
                return known, 0
        data, scales = kernels_for(self.settings.kernels, flat, flat.dtype).pack(flat, kind)
        if scales.numel() and not bool(scales.abs().amax() < LARGE_SCALE):
            return None, 0
        stored = Stored(data, scales.view(torch.int16))
        if any(self._open):
            self._found[key] = (StorageWeakRef(storage), stored)
        return stored, data.nbytes + scales.nbytes

    @torch.no_grad()
    def _pack(self, tensor: Tensor, around: Hook) -> Whole | Rounded:
        whole, storage = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
        kind = self.settings.storage.dtype("normalized", tensor.dtype)
        assert self._own is not None
        if self._own.has(tensor) or tensor.layout != torch.strided:
            return Whole(around(tensor))
        if tensor.numel() < SMALL and 4 * whole < storage:
            return Whole(around(tensor.clone()))  # a view would keep the whole alive
        least = max(SMALL, self._statistics)
        if not tensor.is_floating_point() or tensor.numel() < least or storage < whole or kind == tensor.dtype:
            return Whole(around(tensor))
        order = _order(tensor)
        laid = tensor.detach().permute(order).contiguous()
        width = next((size for size in reversed(laid.shape) if size > 1), 1)
        stored, new = self._stored(laid.view(-1, width), kind) if width >= SHORT else (None, 0)
        if stored is None:
            return Whole(around(tensor))
        self.bytes_kept += new
        self.bytes_dense += whole if new else 0
        return Rounded(around(stored.data), around(stored.scales), laid.shape, order, tensor.dtype)

    @torch.no_grad()
    def _unpack(self, kept: Whole | Rounded, around: Hook) -> Tensor:
        if isinstance(kept, Whole):
            return around(kept.kept)
        stored = Stored(around(kept.data), around(kept.scales))
        like = torch.empty(0, dtype=kept.dtype, device=stored.data.device)
        flat = stored.read(kernels_for(self.settings.kernels, like, kept.dtype), None, None, kept.dtype)
        inverse = sorted(range(len(kept.order)), key=kept.order.__getitem__)
        return flat.view(kept.shape).permute(inverse)


def _same(kept: Any) -> Any:
    return kept


def _order(tensor: Tensor) -> tuple[int, ...]:
    """The dimensions in the order of memory, so that views of one tensor are stored alike."""
    strides = [stride if size > 1 else math.inf for size, stride in zip(tensor.shape, tensor.stride(), strict=True)]
    order = tuple(sorted(range(tensor.dim()), key=lambda dim: -strides[dim]))
    return order if tensor.permute(order).is_contiguous() else tuple(range(tensor.dim()))
