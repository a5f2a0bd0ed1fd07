"""RMSNorm that saves a part of its normalised input.

With x_hat = x * rstd, y = gamma * x_hat, g = dL/dy, a = g * gamma, and means over the features:

    dgamma = sum_n g * x_hat
    dx     = rstd * (a - x_hat * mean(a * x_hat))

The models write the norm out, and autograd saves x, x_hat and rstd of it; here the kept part of x_hat and rstd are
saved. gamma is the weight, or 1 + the weight where a family's norms are so. See `layer_norm` for the error.
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from keepfrac.sparse.selection.packing import unpack_or_whole
from keepfrac.sparse.selection.site import Site


def eps_of(norm: Any) -> float:
    """Returns the eps of a model's norm, whatever its class calls it."""
    return norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps


class SparseRmsNormFunction(torch.autograd.Function):
    """An RMSNorm whose backward pass uses what was kept of the normalised input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Tensor, eps: float, site: Site) -> Tensor:
        """Returns y of x (batch, length, features), in x's dtype; saves rstd and a part of x_hat."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        rstd = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        normal = wide * rstd
        kept = site.select(normal.to(x.dtype))
        ctx.layout = kept.layout if kept else None
        ctx.save_for_backward(gamma, rstd, *(kept.tensors if kept else (normal.to(x.dtype),)))
        return (normal * gamma).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """Returns dx and dgamma."""
        gamma, rstd, *tensors = ctx.saved_tensors
        normal = unpack_or_whole(ctx.layout, tuple(tensors))
        with torch.autocast(grad.device.type, enabled=False):
            scaled = grad * gamma
            along = (scaled * normal).mean(-1, keepdim=True)
            dx = (rstd * (scaled - normal * along)).to(grad.dtype)
            dgamma = (grad * normal).flatten(0, 1).sum(0).to(gamma.dtype)
        return dx, dgamma, None, None


class SparseRmsNorm(nn.Module):
    """Mixed into a model's RMSNorm: it keeps a part of its normalised input.

    It is the stock norm to the bit in eval mode, without grad and with keep_frac 1.
    """

    site: Site
    offset: float
    eps_of_norm: float
    weight: Tensor

    @torch.compiler.disable
    def forward(self, x: Tensor) -> Tensor:
        """Returns the normalised and scaled x."""
        training = self.training and torch.is_grad_enabled()
        if not training or x.dim() != 3 or self.site.selector.keep_frac == 1 or not self._saves(x):
            return super().forward(x)
        gamma = self.weight + self.offset if self.offset else self.weight
        return SparseRmsNormFunction.apply(x, gamma, self.eps_of_norm, self.site)

    def _saves(self, x: Tensor) -> bool:
        if self.site.smaller(x.shape, x.element_size()):
            return True
        self.site.stay_whole(x.numel(), x.numel() * x.element_size())
        return False


@functools.cache
def sparse_rms_norm(stock: Any) -> Any:
    """Returns the class of a model's RMSNorm that keeps a part."""
    return type(f"Sparse{stock.__name__}", (SparseRmsNorm, stock), {"__module__": __name__})
