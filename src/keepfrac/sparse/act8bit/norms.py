"""Dropout, residual and LayerNorm around what a block computes, and the stored form of a block's input.

    PostNorm    y = LayerNorm(dropout(f(x)) + x)
    PreNorm     y = x + dropout(f(LayerNorm(x)))
    NoNorm      y = x + dropout(f(x))
    NormBlock   y = LayerNorm(x): in the place of a removed sub-layer

All but NoNorm store the LayerNorm's normalised rows, which serve twice: for its own gradient, and, times gamma plus
beta, as a linear's input: with the LayerNorm behind, that of the next block's first linears; in front, that of this
block's.

Between two blocks runs code of the model (its loop over layers, hooks), so the stored form is an attribute of the
tensor. Where that code makes a new tensor, the next block packs its input itself: more bytes, the same result.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from keepfrac.sparse.act8bit.calls import OUTPUT, Call, refuse_double_backward
from keepfrac.sparse.act8bit.linears import compute_dtype, without_autocast
from keepfrac.sparse.act8bit.weight_gradients import ALL, Choice
from keepfrac.sparse.kernels import kernels_for
from keepfrac.sparse.kernels.plain import keep_mask

NO_GRADS = (None,) * 4  # of a block, to its stored input: that has x's
_ATTRIBUTE = "_packed_input"


class PackedInput(NamedTuple):
    """A linear layer's input as it is stored: rows of `data` with `scales`, times gamma plus beta (None: as it is)."""

    data: Any
    scales: Any
    gamma: Tensor | None = None
    beta: Tensor | None = None

    def unpack(self, kernels: Any, dtype: torch.dtype, chosen: Choice = ALL) -> Tensor:
        """Returns the chosen rows, each times its factor; (rows, width)."""
        return kernels.unpack(self.data, self.scales, chosen.index, self.gamma, self.beta, chosen.weight, dtype)


NOTHING = PackedInput(None, None)


def attach_packed(y: Tensor, packed: PackedInput) -> Tensor:
    """Makes y carry its stored form, until it is changed in place; returns y."""
    setattr(y, _ATTRIBUTE, (packed, y._version))
    return y


def packed_input(x: Tensor, kernels: Any, kind: torch.dtype) -> tuple[PackedInput, bool]:
    """Returns x's stored form, and whether it had to be packed for that.

    Args:
        x: (batch, length, width).
        kernels: who packs.
        kind: the format to pack in; x's own dtype keeps x itself.
    """
    packed, version = getattr(x, _ATTRIBUTE, (None, -1))
    if packed is not None and version == x._version:
        return packed, False
    rows = x.detach().reshape(-1, x.shape[-1])
    data, scales = kernels.pack(rows.contiguous(), kind)
    # factors that change nothing: under checkpointing with hooks on saved tensors the repeated pass has lost the stored
    # form, and must save as many tensors of the same shapes as the first
    gamma, beta = x.new_ones(x.shape[-1]), x.new_zeros(x.shape[-1])
    return PackedInput(data, scales, gamma=gamma, beta=beta), kind != x.dtype


class PostNorm:
    """The forward pass of a block with its LayerNorm behind, or its backward pass.

    Args:
        call: of the block.
        kernels: compiled or plain.
        gamma, beta: of the LayerNorm, (width,); beta None: it adds none.
        compute: dtype of the matmuls.
        kept: what `leave` stored, for the backward pass: normalised rows, their scales, 1 / deviation.
    """

    def __init__(
        self,
        *,
        call: Call,
        kernels: Any,
        gamma: Tensor,
        beta: Tensor | None,
        compute: torch.dtype,
        kept: tuple[Tensor, ...] = (),
    ) -> None:
        self.call, self.kernels, self.compute, self.kept = call, kernels, compute, kept
        self.gamma, self.has_beta = gamma, beta is not None
        self.beta = torch.zeros_like(gamma) if beta is None else beta
        self.d_gamma: Tensor | None = None
        self.d_beta: Tensor | None = None
        self.d_output_gamma: Tensor | None = None

    def enter(self, residual: Tensor) -> Tensor:
        """Returns what f reads (rows, width), of the residual."""
        return residual

    def leave(self, out: Tensor, residual: Tensor) -> Tensor:
        """Returns y (rows, width), of f's output (compute dtype) and the residual."""
        y, *kept = self._add_norm(out, residual, self.call.norm.p)
        self.kept = tuple(kept)
        return y

    def _add_norm(self, out: Tensor, residual: Tensor, p: float) -> tuple[Tensor, ...]:
        call, kind = self.call, self.call.storage.dtype("normalized", residual.dtype)
        seed = call.seed_of(OUTPUT) if p else 0
        return self.kernels.add_norm(out, residual, self.gamma, self.beta, call.norm.eps, p, seed, kind)

    @property
    def output(self) -> tuple[Tensor | None, Tensor | None]:
        """Returns y's stored form, without gamma and beta; None where there is none."""
        return self.kept[0], self.kept[1]

    def input(self, packed: PackedInput) -> PackedInput:
        """Returns the stored form of what f reads, where `packed` is that of the block's input."""
        return packed

    def open(self, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns, of the gradient to y: that to f's output; the norms of its rows; where to add that to f's input."""
        p, seed = self.call.norm.p, self.call.seed_of(OUTPUT)
        total, d_out, norms = self._add_norm_grad(dy, p, seed)
        return d_out, norms, total

    def _add_norm_grad(self, dy: Tensor, p: float, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients to the residual and to what was added to it, and the norms of the latter's rows."""
        total, d_out, self.d_gamma, d_beta, norms = self.kernels.add_norm_grad(
            dy, *self.kept, self.gamma, p, seed, self.compute
        )
        self.d_beta = d_beta if self.has_beta else None
        return total, d_out, norms

    def close(self, dy: Tensor, total: Tensor) -> Tensor:
        """Returns the gradient to the block's input, when that to f's input has been added."""
        return total


class PreNorm(PostNorm):
    """The same for a LayerNorm in front."""

    def enter(self, residual: Tensor) -> Tensor:
        nothing = torch.zeros_like(residual, dtype=self.compute)
        read, *kept = self._add_norm(nothing, residual, 0.0)
        self.kept = tuple(kept)
        return read

    def leave(self, out: Tensor, residual: Tensor) -> Tensor:
        return residual + self._dropped(out.to(residual.dtype))

    def _dropped(self, x: Tensor) -> Tensor:
        p = self.call.norm.p
        if p == 0:
            return x
        return x * keep_mask(tuple(x.shape), p, self.call.seed_of(OUTPUT), x.device) * (1 / (1 - p))

    @property
    def output(self) -> tuple[Tensor | None, Tensor | None]:
        return None, None

    def input(self, packed: PackedInput) -> PackedInput:
        return PackedInput(self.kept[0], self.kept[1], gamma=self.gamma, beta=self.beta)

    def open(self, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        d_out = self._dropped(dy).to(self.compute)
        norms = torch.linalg.vector_norm(d_out, dim=1, dtype=torch.promote_types(self.compute, torch.float32))
        return d_out, norms, torch.zeros_like(dy)

    def close(self, dy: Tensor, total: Tensor) -> Tensor:
        return self._add_norm_grad(total, 0.0, 0)[0].add_(dy)


class NoNorm(PreNorm):
    """The same with nothing in front: f reads the residual, whose stored form is the block's input."""

    def __init__(self, *, call: Call, kernels: Any, compute: torch.dtype, **_nothing: Any) -> None:
        self.call, self.kernels, self.compute, self.kept = call, kernels, compute, ()
        self.d_gamma = self.d_beta = self.d_output_gamma = None

    def enter(self, residual: Tensor) -> Tensor:
        return residual

    def input(self, packed: PackedInput) -> PackedInput:
        return packed

    def close(self, dy: Tensor, total: Tensor) -> Tensor:
        return total.add_(dy)


class NormBlock(torch.autograd.Function):
    """A LayerNorm alone. Returns y (batch, length, width) and its normalised rows as stored: data, scales."""

    @staticmethod
    def forward(ctx, x, gamma, beta, call):
        compute = compute_dtype(x)
        kernels, kind = kernels_for(call.settings.kernels, x, compute), call.storage.dtype("normalized", x.dtype)
        with without_autocast(x):
            rows = x.reshape(-1, x.shape[-1]).contiguous()
            nothing = torch.zeros_like(rows, dtype=compute)
            y, *kept = kernels.add_norm(nothing, rows, gamma, beta, call.norm.eps, 0.0, 0, kind)
        ctx.save_for_backward(gamma, *kept)
        ctx.call, ctx.compute = call, compute
        ctx.mark_non_differentiable(*kept[:2])
        ctx.set_materialize_grads(False)
        call.count_saved(x, tuple(kept), compute, values=None)
        return torch.ops.aten._unsafe_view(y, x.shape), *kept[:2]

    @staticmethod
    def backward(ctx, dy, _data, _scales):
        refuse_double_backward()
        if dy is None:
            return None, None, None, None
        gamma, *kept = ctx.saved_tensors
        kernels = kernels_for(ctx.call.settings.kernels, dy, ctx.compute)
        with without_autocast(dy):
            rows = dy.reshape(-1, dy.shape[-1]).contiguous()
            d_x, _, d_gamma, d_beta, _ = kernels.add_norm_grad(rows, *kept, gamma, 0.0, 0, ctx.compute)
        return d_x.view_as(dy), d_gamma, d_beta, None
