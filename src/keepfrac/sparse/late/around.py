"""Dropout, residual and LayerNorm around what a block computes: the LayerNorm behind the sum, or in front.

    Behind     y = LayerNorm(dropout(f(x)) + x)
    InFront    y = x + dropout(f(LayerNorm(x)))

Either stores the LayerNorm's normalised rows, which serve twice: for its own gradient, and, times gamma plus beta, as a
linear's input: behind, that of the next block's first linears; in front, that of this block's.
"""

import torch
from torch import Tensor

from keepfrac.sparse.kernels.plain import keep_mask
from keepfrac.sparse.late.carried import Input
from keepfrac.sparse.late.settings import OUTPUT, Formats, Plan


class Behind:
    """The forward pass of a block with its LayerNorm behind, or its backward pass.

    Args:
        kernels: compiled or plain.
        plan: of this call.
        norm: gamma and beta of the LayerNorm (beta None in the backward pass).
        compute: dtype of the matmuls.
        kept: what `leave` stored, for the backward pass: normalised rows, their scales, 1 / deviation.
    """

    def __init__(
        self,
        kernels,
        plan: Plan,
        norm: tuple[Tensor, Tensor | None],
        compute: torch.dtype,
        kept: tuple[Tensor, ...] = (),
    ) -> None:
        self.kernels, self.plan, self.compute, self.kept = kernels, plan, compute, kept
        self.gamma, self.beta = norm

    def enter(self, stream: Tensor, formats: Formats) -> Tensor:
        """Returns what f reads (rows, width), of the residual stream."""
        return stream

    def leave(self, out: Tensor, stream: Tensor, formats: Formats) -> Tensor:
        """Returns y (rows, width), of f's output (compute dtype) and the stream."""
        plan = self.plan
        y, *kept = self.kernels.add_norm(
            out, stream, self.gamma, self.beta, plan.eps, plan.p, plan.seed_of(OUTPUT), formats.hat
        )
        self.kept = tuple(kept)
        return y

    @property
    def carried(self) -> tuple[Tensor | None, Tensor | None]:
        """Returns y's stored form, without gamma and beta; None where there is none."""
        return self.kept[0], self.kept[1]

    def input(self, stored: Input) -> Input:
        """Returns the stored form of what f reads, where `stored` is that of the block's input."""
        return stored

    def open(self, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns, of the gradient to y: that to f's output; the norms of its rows; where to add that to f's input."""
        plan = self.plan
        into, d_out, self.d_gamma, self.d_beta, norms = self.kernels.add_norm_grad(
            dy, *self.kept, self.gamma, plan.p, plan.seed_of(OUTPUT), self.compute
        )
        return d_out, norms, into

    def close(self, dy: Tensor, into: Tensor) -> Tensor:
        """Returns the gradient to the block's input, when that to f's input has been added."""
        return into


class InFront(Behind):
    """The same for a LayerNorm in front."""

    def enter(self, stream: Tensor, formats: Formats) -> Tensor:
        nothing = torch.zeros_like(stream, dtype=self.compute)
        read, *kept = self.kernels.add_norm(nothing, stream, self.gamma, self.beta, self.plan.eps, 0.0, 0, formats.hat)
        self.kept = tuple(kept)
        return read

    def leave(self, out: Tensor, stream: Tensor, formats: Formats) -> Tensor:
        return stream + self._dropped(out.to(stream.dtype))

    def _dropped(self, x: Tensor) -> Tensor:
        p = self.plan.p
        if p == 0:
            return x
        return x * keep_mask(tuple(x.shape), p, self.plan.seed_of(OUTPUT), x.device) * (1 / (1 - p))

    @property
    def carried(self) -> tuple[Tensor | None, Tensor | None]:
        return None, None

    def input(self, stored: Input) -> Input:
        return Input(self.kept[0], self.kept[1], self.gamma, self.beta)

    def open(self, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        d_out = self._dropped(dy).to(self.compute)
        norms = torch.linalg.vector_norm(d_out, dim=1, dtype=torch.promote_types(self.compute, torch.float32))
        return d_out, norms, torch.zeros_like(dy)

    def close(self, dy: Tensor, into: Tensor) -> Tensor:
        d_x, _, self.d_gamma, self.d_beta, _ = self.kernels.add_norm_grad(
            into, *self.kept, self.gamma, 0.0, 0, self.compute
        )
        return d_x.add_(dy)


def around_for(plan: Plan) -> type[Behind]:
    """Returns the class for a block."""
    return InFront if plan.in_front else Behind
