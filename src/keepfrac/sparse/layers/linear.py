"""A linear layer that saves a part of its input.

For Y = X W^T + b with G = dL/dY, all read as matrices of N = batch * length rows:

    dX = G W          exact: it needs W alone
    db = sum_n G_n    exact
    dW = G^T X        the only one that needs X: computed from the kept part X_hat

so the approximation never travels to other layers. With kept columns J only dW[:, J] = G^T X[:, J] is computed, with
kept tokens T dW = G[T]^T X[T]: both cost keep_frac of the dense product. Blocks and elements are unpacked to a dense
X_hat first: fewer bytes, no less arithmetic. No tensor of shape (batch, out, in) ever appears.

Under autocast X is cast as `F.linear` would cast it, once per layer, and the cast is what is kept.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from keepfrac.sparse.selection.packing import PackedLayout, unpack
from keepfrac.sparse.selection.site import Site


def weight_gradient(grad: Tensor, layout: PackedLayout, tensors: tuple[Tensor, ...]) -> Tensor:
    """Returns dW = G^T X_hat, (out, in).

    Args:
        grad: G, (tokens, out).
        layout: how to read the tensors.
        tensors: what was kept of X.
    """
    features = layout.shape[2]
    if layout.kind == "columns":
        values, columns = tensors
        return grad.new_zeros(grad.shape[1], features).index_copy_(1, columns.long(), grad.t() @ values)
    if layout.kind == "rows":
        values, rows = tensors
        return grad.index_select(0, rows).t() @ values
    return grad.t() @ unpack(layout, tensors).reshape(-1, features)


class SparseLinearFunction(torch.autograd.Function):
    """F.linear whose weight gradient uses what was kept of the input."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, layout: PackedLayout, *tensors: Tensor
    ) -> Tensor:
        """Returns X W^T + b of X (..., in) and W (out, in); saves W and what is kept of X, `tensors`."""
        ctx.layout = layout
        ctx.save_for_backward(weight, *tensors)
        y = F.linear(x.reshape(-1, x.shape[-1]), weight, bias)
        # Not a view: the next operation may work in place (relu_inplace).
        return torch.ops.aten._unsafe_view(y, [*x.shape[:-1], weight.shape[0]])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """Returns dX and db, exact, and dW of the kept part."""
        weight, *tensors = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        flat = grad.reshape(-1, grad.shape[-1])
        with torch.autocast(grad.device.type, enabled=False):
            dx = (flat @ weight).view(*grad.shape[:-1], weight.shape[1]) if needs_x else None
            dw = weight_gradient(flat, ctx.layout, tuple(tensors)) if needs_weight else None
            db = flat.sum(0) if needs_bias else None
        return (dx, dw, db, None, *[None] * len(tensors))


def autocast_dtype(x: Tensor) -> torch.dtype:
    """Returns the dtype in which autocast, where it is on, would compute a matrix product with `x`."""
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.is_floating_point() and x.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return x.dtype


class SparseLinear(nn.Linear):
    """`nn.Linear` that keeps a part of its input for the backward pass.

    A linear becomes one by `change_class`. It is `nn.Linear` to the bit in eval mode, without grad, with keep_frac 1,
    and for inputs that are not (batch, length, features). With a frozen weight it saves nothing of its input.
    """

    site: Site

    @torch.compiler.disable
    def forward(self, x: Tensor) -> Tensor:
        """Returns X W^T + b."""
        training = self.training and torch.is_grad_enabled() and self.weight.requires_grad
        if not training or x.dim() != 3 or self.site.selector.keep_frac == 1:
            return F.linear(x, self.weight, self.bias)  # which saves no X for a frozen W
        cast = x.to(autocast_dtype(x))
        kept = self.site.select(x, cast)
        if kept is None:
            return F.linear(x, self.weight, self.bias)
        bias = None if self.bias is None else self.bias.to(cast.dtype)
        return SparseLinearFunction.apply(cast, self.weight.to(cast.dtype), bias, kept.layout, *kept.tensors)
