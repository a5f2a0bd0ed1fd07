"""Attention, dropout, residual and LayerNorm as one autograd function that saves 8-bit numbers.

    q, k, v = x Wq' + bq, ...      P = dropout(softmax(q k' scale + mask))      c = P v
    y = LayerNorm(dropout(c Wo' + bo) + x)

Saved: x (in the stored form that its LayerNorm left), q, k, v, optionally c, the normalised rows of y's LayerNorm and
its 1 / deviation. Not saved: P (recomputed, one sample at a time, so that it stays in the processor's cache), dropout
masks (regenerated). The gradient to x goes over all rows; those to the weights over the chosen ones (rows.py).
"""

import torch
from torch import Tensor

from src.sparse.kernels import kernels_for
from src.sparse.late.carried import Input
from src.sparse.late.products import (
    add_outer,
    add_product,
    column_sums,
    compute_dtype,
    gather,
    live_rows,
    product,
    without_autocast,
)
from src.sparse.late.rows import Choice, choose
from src.sparse.late.settings import OUTPUT, PROBABILITIES, ROWS_IN, ROWS_OUT, Plan
from src.sparse.late.tally import count_saved, refuse_double_backward

NO_GRADS = (None,) * 4  # to the stored input: its gradient is x's


def _split(rows: Tensor, plan: Plan) -> Tensor:
    """One sample's fused projections (length, 3 * heads * d_head) as (3, heads, length, d_head), a view."""
    return rows.view(plan.shape[1], 3, plan.heads, -1).permute(1, 2, 0, 3)


def _sample(x: Tensor, b: int, length: int) -> Tensor:
    return x[b * length : (b + 1) * length] if x.numel() else x


def _attend(kernels, qkv: Tensor, bias: Tensor | None, plan: Plan) -> Tensor:
    """Returns the context (batch * length, heads * d_head) of the fused projections (batch * length, 3 * ...)."""
    batch, length = plan.shape
    context = qkv.new_empty(batch * length, qkv.shape[1] // 3)
    for b in range(batch):
        query, key, value = _split(_sample(qkv, b, length), plan)
        probs = torch.bmm(query, key.transpose(1, 2))
        seed = plan.seed_of(PROBABILITIES, b)
        probs = kernels.softmax_(probs, plan.scale, None if bias is None else bias[b], plan.p_attention, seed)
        _sample(context, b, length).view(length, plan.heads, -1).copy_(
            torch.bmm(probs, value).transpose(0, 1)
        )
    return context


def _attend_grad(
    kernels,
    stored: tuple[Tensor, Tensor],
    bias: Tensor | None,
    d_context: Tensor,
    context: Tensor | None,
    plan: Plan,
) -> Tensor:
    """Returns the gradient to the fused projections; fills `context` with the forward's, where one is given."""
    batch, length = plan.shape
    d_qkv = d_context.new_empty(len(d_context), 3 * d_context.shape[1])
    for b in range(batch):
        data, scales = (_sample(part, b, length) for part in stored)
        rows = kernels.unpack(data, scales, None, None, None, None, d_context.dtype)
        query, key, value = _split(rows, plan)
        d_query, d_key, d_value = _split(_sample(d_qkv, b, length), plan)
        d_out = _sample(d_context, b, length).view(length, plan.heads, -1).transpose(0, 1)
        scores, d_probs = torch.bmm(query, key.transpose(1, 2)), torch.bmm(d_out, value.transpose(1, 2))
        mask, seed = None if bias is None else bias[b], plan.seed_of(PROBABILITIES, b)
        probs, d_scores = kernels.softmax_grad_(scores, d_probs, plan.scale, mask, plan.p_attention, seed)
        d_value.copy_(torch.bmm(probs.transpose(1, 2), d_out))
        d_query.copy_(torch.bmm(d_scores, key))
        d_key.copy_(torch.bmm(d_scores.transpose(1, 2), query))
        if context is not None:
            _sample(context, b, length).view(length, plan.heads, -1).copy_(
                torch.bmm(probs, value).transpose(0, 1)
            )
    return d_qkv


class AttentionBlock(torch.autograd.Function):
    """See the module. Returns y (batch, length, width) and its normalised rows as stored: data, scales."""

    @staticmethod
    def forward(
        ctx, x, data, scales, x_gamma, x_beta, wq, bq, wk, bk, wv, bv, wo, bo, gamma, beta, bias, plan
    ):
        compute = compute_dtype(x)
        formats, kernels = (
            plan.storing.formats(x.dtype, compute),
            kernels_for(plan.settings.kernels, x, compute),
        )
        with without_autocast(x):
            stream = x.reshape(-1, x.shape[-1]).contiguous()
            weight, shift = torch.cat([wq, wk, wv]).to(compute), torch.cat([bq, bk, bv]).to(compute)
            qkv = torch.addmm(shift, stream.to(compute), weight.t())
            context = _attend(kernels, qkv, bias, plan)
            stored_qkv = kernels.pack(qkv, formats.attention)
            del qkv
            empty = context.new_empty(0)
            save_context = plan.storing.context == "save"
            stored_context = kernels.pack(context, formats.attention) if save_context else (empty, empty)
            out = torch.addmm(bo.to(compute), context, wo.to(compute).t())
            seed = plan.seed_of(OUTPUT)
            y, hat, hat_scales, rstd = kernels.add_norm(
                out, stream, gamma, beta, plan.eps, plan.p, seed, formats.hat
            )
        kept = (*stored_qkv, *stored_context, hat, hat_scales, rstd)
        ctx.save_for_backward(data, scales, x_gamma, x_beta, wq, wk, wv, wo, gamma, bias, *kept)
        ctx.plan, ctx.compute = plan, compute
        ctx.mark_non_differentiable(hat, hat_scales)
        ctx.set_materialize_grads(False)  # or zeros would be made for the two
        count_saved(plan, x, compute, kept, inner=wq.shape[0] * 4)
        # not a view: autograd forbids to change a view of a custom function in place
        return torch.ops.aten._unsafe_view(y, x.shape), hat, hat_scales

    @staticmethod
    def backward(ctx, dy, _data, _scales):
        refuse_double_backward()
        if dy is None:
            return (None,) * len(ctx.needs_input_grad)
        data, scales, x_gamma, x_beta, wq, wk, wv, wo, gamma, bias, *kept = ctx.saved_tensors
        *stored_qkv, context, context_scales, hat, hat_scales, rstd = kept
        plan, compute, needs = ctx.plan, ctx.compute, ctx.needs_input_grad
        kernels, settings = kernels_for(plan.settings.kernels, dy, compute), plan.settings
        with without_autocast(dy):
            rows = dy.reshape(-1, dy.shape[-1]).contiguous()
            d_x, d_out, d_gamma, d_beta, norms = kernels.add_norm_grad(
                rows, hat, hat_scales, rstd, gamma, plan.p, plan.seed_of(OUTPUT), compute
            )
            d_context = product(d_out, wo.to(compute), live_rows(norms, settings.skip_zero_rows))
            recomputed = None if plan.storing.context == "save" else torch.empty_like(d_context)
            d_qkv = _attend_grad(kernels, stored_qkv, bias, d_context, recomputed, plan)
            if recomputed is not None:
                context, context_scales = recomputed, recomputed.new_empty(0)
            chosen = choose(norms, plan.budget(), settings.rows, plan.seed_of(ROWS_OUT))
            d_wo = None
            if needs[11]:
                d_wo = _weight_grad(kernels, d_out, Input(context, context_scales, None, None), chosen, wo)
            d_bo = column_sums(d_out, wo.dtype)
            del d_context, d_out, recomputed, context

            norms = torch.linalg.vector_norm(d_qkv, dim=1, dtype=torch.promote_types(compute, torch.float32))
            also = choose(norms, plan.budget(), settings.rows, plan.seed_of(ROWS_IN))
            thirds: tuple[Tensor | None, ...] = (None, None, None)
            if needs[5] or needs[7] or needs[9]:
                thirds = _weight_grad(kernels, d_qkv, Input(data, scales, x_gamma, x_beta), also, wq).chunk(3)
            d_shift = column_sums(d_qkv, wq.dtype).chunk(3)
            if needs[0]:
                live = live_rows(norms, settings.skip_zero_rows)
                add_product(d_x, live, gather(d_qkv, live), torch.cat([wq, wk, wv]).to(compute))
            plan.tally.add(plan.real, chosen.count(plan.real), also.count(plan.real))
        d_projections = [part for pair in zip(thirds, d_shift, strict=True) for part in pair]
        return d_x.view_as(dy), *NO_GRADS, *d_projections, d_wo, d_bo, d_gamma, d_beta, None, None


def _weight_grad(kernels, g: Tensor, x: Input, chosen: Choice, like: Tensor) -> Tensor:
    """Returns the sum over the chosen rows of weight * g x^T; (g's width, x's width), in the dtype of `like`."""
    inputs = kernels.unpack(x.data, x.scales, chosen.index, x.gamma, x.beta, chosen.weight, g.dtype)
    total = like.new_zeros(g.shape[1], x.data.shape[1])
    add_outer(total, gather(g, chosen.index), inputs)
    return total
