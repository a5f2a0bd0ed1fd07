"""The LayerNorm that is left of a removed sub-layer: y = LayerNorm(x), which saves its normalised rows in 8 bits."""

import torch

from keepfrac.sparse.kernels import kernels_for
from keepfrac.sparse.late.products import compute_dtype, without_autocast
from keepfrac.sparse.late.tally import count_saved, refuse_double_backward


class NormBlock(torch.autograd.Function):
    """See the module. Returns y (batch, length, width) and its normalised rows as stored: data, scales."""

    @staticmethod
    def forward(ctx, x, gamma, beta, plan):
        compute = compute_dtype(x)
        formats, kernels = (plan.storing.formats(x.dtype, compute), kernels_for(plan.settings.kernels, x, compute))
        with without_autocast(x):
            stream = x.reshape(-1, x.shape[-1]).contiguous()
            nothing = torch.zeros_like(stream, dtype=compute)
            y, hat, hat_scales, rstd = kernels.add_norm(nothing, stream, gamma, beta, plan.eps, 0.0, 0, formats.hat)
        ctx.save_for_backward(gamma, hat, hat_scales, rstd)
        ctx.plan, ctx.compute = plan, compute
        ctx.mark_non_differentiable(hat, hat_scales)
        ctx.set_materialize_grads(False)
        count_saved(plan, x, compute, (hat, hat_scales, rstd), inner=None)
        return torch.ops.aten._unsafe_view(y, x.shape), hat, hat_scales

    @staticmethod
    def backward(ctx, dy, _data, _scales):
        refuse_double_backward()
        if dy is None:
            return None, None, None, None
        gamma, hat, hat_scales, rstd = ctx.saved_tensors
        kernels = kernels_for(ctx.plan.settings.kernels, dy, ctx.compute)
        with without_autocast(dy):
            rows = dy.reshape(-1, dy.shape[-1]).contiguous()
            d_x, _, d_gamma, d_beta, _ = kernels.add_norm_grad(rows, hat, hat_scales, rstd, gamma, 0.0, 0, ctx.compute)
        return d_x.view_as(dy), d_gamma, d_beta, None
