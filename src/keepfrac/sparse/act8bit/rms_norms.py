"""RMSNorm around what a block computes: in front of it, and in some families behind it too.

    y = x + dropout(f(x / rms(x) * gamma))
    y = x + dropout(f(x / rms(x) * gamma) / rms(f(...)) * gamma')      with an output norm

Each stores its normalised rows, as `norms.PreNorm` does for a LayerNorm, and 1 / rms. gamma is what the norm multiplies
with: the weight, or 1 + the weight where a family's norms are so.
"""

from typing import Any

import torch
from torch import Tensor

from keepfrac.sparse.act8bit.calls import Call
from keepfrac.sparse.act8bit.norms import NoNorm, PackedInput, PostNorm, PreNorm


def rms_norm(x: Tensor, gamma: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Computes y = x / rms(x) * gamma over the last dimension.

    Args:
        x: (..., width).
        gamma: (width,).
        eps: added to the mean square.

    Returns:
        y and x / rms(x), both like x, in float32 at least; 1 / rms (..., 1).
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    rstd = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    normalized = wide * rstd
    return normalized * gamma.to(wide.dtype), normalized, rstd


def rms_norm_grad(dy: Tensor, normalized: Tensor, rstd: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the gradients to x (rows, width) and gamma (width,) of `rms_norm`, in the dtype of `normalized`."""
    wide = dy.to(normalized.dtype)
    d_gamma = (wide * normalized).sum(0)
    d_normal = wide * gamma.to(wide.dtype)
    along = (d_normal * normalized).mean(1, keepdim=True)
    return d_normal.addcmul_(normalized, along, value=-1).mul_(rstd.view(-1, 1)), d_gamma


class PreRmsNorm(PreNorm):
    """`PreNorm` of RMSNorms; beta is None.

    Args:
        output_gamma: of the norm behind f, (width,); None: there is none.
    """

    def __init__(self, *, output_gamma: Tensor | None = None, **given: Any) -> None:
        super().__init__(**given)
        self.output_gamma = output_gamma

    def _normalize(self, x: Tensor, gamma: Tensor, eps: float) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Returns the norm of x (rows, width), and what its gradient needs."""
        y, normalized, rstd = rms_norm(x, gamma, eps)
        stored = self.kernels.pack(normalized.to(x.dtype), self.call.storage.dtype("normalized", x.dtype))
        return y.to(x.dtype), (*stored, rstd.view(-1))

    def _gradients(self, dy: Tensor, gamma: Tensor, stored: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        data, scales, rstd = stored
        normalized = PackedInput(data, scales).unpack(self.kernels, rstd.dtype)
        return rms_norm_grad(dy, normalized, rstd, gamma)

    def enter(self, residual: Tensor) -> Tensor:
        read, self.kept = self._normalize(residual, self.gamma, self.call.norm.eps)
        return read

    def leave(self, out: Tensor, residual: Tensor) -> Tensor:
        out = out.to(residual.dtype)
        if self.output_gamma is not None:
            out, behind = self._normalize(out, self.output_gamma, self.call.norm.output_eps or 0.0)
            self.kept = (*self.kept, *behind)
        return residual + self._dropped(out)

    def input(self, packed: PackedInput) -> PackedInput:
        return PackedInput(self.kept[0], self.kept[1], gamma=self.gamma, beta=torch.zeros_like(self.gamma))

    def open(self, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.output_gamma is None:
            return super().open(dy)
        d_out, self.d_output_gamma = self._gradients(self._dropped(dy), self.output_gamma, self.kept[3:])
        norms = torch.linalg.vector_norm(d_out, dim=1)
        return d_out.to(self.compute), norms, torch.zeros_like(dy)

    def close(self, dy: Tensor, total: Tensor) -> Tensor:
        d_x, self.d_gamma = self._gradients(total, self.gamma, self.kept[:3])
        return d_x.to(dy.dtype).add_(dy)


def norm_around(call: Call, *, output_gamma: Tensor | None = None, **given: Any) -> PostNorm:
    """Returns what stands around a block; `given` as for `PostNorm`, `output_gamma` as for `PreRmsNorm`."""
    if call.norm.rms:
        return PreRmsNorm(call=call, output_gamma=output_gamma, **given)
    if call.norm.bare:
        return NoNorm(call=call, **given)
    return (PreNorm if call.norm.pre_norm else PostNorm)(call=call, **given)
