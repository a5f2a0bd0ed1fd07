"""LayerNorm that saves a part of its normalised input.

With x_hat = (x - mean) * rstd, y = gamma * x_hat + beta, g = dL/dy, a = g * gamma, and means over the features:

    dgamma = sum_n g * x_hat        dbeta = sum_n g
    dx     = rstd * (a - mean(a) - x_hat * mean(a * x_hat))

torch saves x, the mean and rstd; here the kept part of x_hat and rstd are saved. x_hat and not x, because a number that
was not kept reads as 0, and 0 is the neutral value of x_hat: the token then counts as average there. With an x of 0 it
would read as -mean * rstd, an arbitrary number.

Error: x_hat enters dx only in its last term. With it set to 0 altogether, dx misses its component along x_hat, no more.
Measured errors by keep_frac are in the tests.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from keepfrac.sparse.selection.packing import unpack_or_whole
from keepfrac.sparse.selection.site import Site


class SparseLayerNormFunction(torch.autograd.Function):
    """F.layer_norm whose backward pass uses what was kept of the normalised input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, site: Site) -> Tensor:
        """Returns y of x (batch, length, features); saves rstd and a part of x_hat (all where no part is smaller)."""
        y, mean, rstd = torch.native_layer_norm(x, weight.shape, weight, bias, eps)
        normal = ((x - mean) * rstd).to(x.dtype)
        kept = site.select(normal)
        ctx.layout = kept.layout if kept else None
        ctx.save_for_backward(weight, rstd, *(kept.tensors if kept else (normal,)))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """Returns dx, dgamma and dbeta."""
        weight, rstd, *tensors = ctx.saved_tensors
        normal = unpack_or_whole(ctx.layout, tuple(tensors))
        with torch.autocast(grad.device.type, enabled=False):
            scaled = grad * weight
            along = (scaled * normal).mean(-1, keepdim=True)
            dx = (rstd * (scaled - scaled.mean(-1, keepdim=True) - normal * along)).to(grad.dtype)
            dweight = (grad * normal).flatten(0, 1).sum(0).to(weight.dtype)
            dbias = grad.flatten(0, 1).sum(0).to(weight.dtype) if ctx.needs_input_grad[2] else None
        return dx, dweight, dbias, None, None


class SparseLayerNorm(nn.LayerNorm):
    """`nn.LayerNorm` that keeps a part of its normalised input.

    It is `nn.LayerNorm` to the bit in eval mode, without grad and with keep_frac 1.
    """

    site: Site

    @torch.compiler.disable
    def forward(self, x: Tensor) -> Tensor:
        """Returns the normalised, scaled and shifted x."""
        training = self.training and torch.is_grad_enabled()
        if not training or x.dim() != 3 or self.site.selector.keep_frac == 1 or not self._saves(x):
            return super().forward(x)
        if torch.is_autocast_enabled(x.device.type) and x.device.type == "cuda":
            x = x.float()  # autocast runs layer_norm in float32 there, on a CPU as it comes
        return SparseLayerNormFunction.apply(x, self.weight, self.bias, self.eps, self.site)

    def _saves(self, x: Tensor) -> bool:
        if self.site.smaller(x.shape, x.element_size()):
            return True
        self.site.stay_whole(x.numel(), x.numel() * x.element_size())
        return False
