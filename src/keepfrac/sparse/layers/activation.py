"""ReLU that saves one bit per number.

The gradient of y = max(x, 0) is dy where y > 0 and 0 elsewhere: one bit of each number decides it. torch's ReLU saves
y itself, which costs nothing while the linear behind it saves y too, and everything once that linear keeps only a part:
the two together then hold more than the dense pair. So the bits are saved exactly where the linear behind saves less.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from keepfrac.sparse.selection.site import Site
from keepfrac.tensors.bits import pack_bits, unpack_bits


class PackedReLUFunction(torch.autograd.Function):
    """ReLU that saves the signs of its output, packed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, inplace: bool) -> Tensor:
        """Returns max(x, 0), in the memory of x if `inplace`."""
        if inplace:
            ctx.mark_dirty(x)
        y = x.relu_() if inplace else x.relu()
        ctx.save_for_backward(pack_bits(y > 0))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Returns the gradient where the output is positive."""
        (bits,) = ctx.saved_tensors
        return grad * unpack_bits(bits, grad.numel()).view(grad.shape), None


class PackedReLU(nn.ReLU):
    """ReLU whose saved bits replace its output, where the linear behind it keeps but a part of that output.

    Attributes:
        behind: site of the linear that reads the output; None where that linear is frozen and saves nothing of it.
        site: what to report to.
    """

    behind: Site | None
    site: Site

    @torch.compiler.disable
    def forward(self, x: Tensor) -> Tensor:
        """Returns max(x, 0)."""
        if not (self.training and torch.is_grad_enabled() and x.requires_grad):
            return F.relu(x, inplace=self.inplace)
        self.site.kept = self.site.of = x.numel()
        # torch's ReLU saves its output, which a linear site behind it counts as its input already.
        self.site.bytes_dense = x.numel() * x.element_size() if self.behind is None else 0
        if not self._saves(x):
            self.site.bytes_kept = self.site.bytes_predicted = self.site.bytes_dense
            return F.relu(x, inplace=self.inplace)
        self.site.bytes_kept = self.site.bytes_predicted = -(-x.numel() // 8)
        return PackedReLUFunction.apply(x, self.inplace)

    def _saves(self, x: Tensor) -> bool:
        if self.behind is None:
            return True
        return x.dim() == 3 and self.behind.selector.keep_frac < 1 and self.behind.smaller(x.shape, x.element_size())
