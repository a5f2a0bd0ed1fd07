"""Dropout that saves one bit per number.

y = x * m / (1 - p) with m = 1 where a number survives: its gradient needs m alone. torch saves m with a byte per number
on a GPU and as a float of four on a CPU; a bit is enough. Forward, gradient and the random numbers that are drawn are
torch's to the bit.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from keepfrac.sparse.selection.site import Site
from keepfrac.tensors.bits import pack_bits, unpack_bits


def dropout_factors(like: Tensor, p: float) -> Tensor:
    """Returns the factors of dropout for a tensor like `like`, 0 or 1 / (1 - p), as torch's dropout draws them."""
    return F.dropout(torch.ones_like(like), p)


def factors_of_bits(bits: Tensor, like: Tensor, p: float) -> Tensor:
    """Returns the factors again, from one bit each."""
    return unpack_bits(bits, like.numel()).view(like.shape).to(like.dtype).div_(1 - p)


class PackedDropoutFunction(torch.autograd.Function):
    """F.dropout that saves its mask packed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        """Returns x with a share p of its numbers set to 0 and the others divided by 1 - p."""
        factors = dropout_factors(x, p)
        ctx.p = p
        ctx.save_for_backward(pack_bits(factors != 0))
        return x * factors

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Returns the gradient where a number survived, divided by 1 - p."""
        (bits,) = ctx.saved_tensors
        return grad * factors_of_bits(bits, grad, ctx.p), None


class PackedDropout(nn.Dropout):
    """`nn.Dropout` that saves one bit per number."""

    site: Site

    @torch.compiler.disable
    def forward(self, x: Tensor) -> Tensor:
        """Returns x with a share p of its numbers set to 0 and the others divided by 1 - p."""
        if not (self.training and torch.is_grad_enabled() and x.requires_grad) or not 0 < self.p < 1:
            return super().forward(x)
        self.site.kept = self.site.of = x.numel()
        self.site.bytes_dense = x.numel() * (x.element_size() if x.device.type == "cpu" else 1)
        self.site.bytes_kept = self.site.bytes_predicted = -(-x.numel() // 8)
        return PackedDropoutFunction.apply(x, self.p)
