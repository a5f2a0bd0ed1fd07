"""Attention, dropout, residual and LayerNorm as one autograd function that saves 8-bit numbers.

    q, k, v = x Wq' + bq, ...      P = dropout(softmax(q k' scale + mask))      c = P v
    y = LayerNorm(dropout((z o c) Wo' + bo) + x)      z: gates of the heads, where there are any

Saved: x (in the stored form that its LayerNorm left), q, k, v, optionally c, the normalised rows of y's LayerNorm and
its 1 / deviation. Not saved: P (recomputed, one sample at a time, so that it stays in the processor's cache), dropout
masks (regenerated), c where neither Wo nor z learns. The gradients to x and z go over all rows; those to the weights
over the chosen ones (rows.py), and a frozen weight has none. With the LayerNorm in front see around.py.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from keepfrac.sparse.kernels import kernels_for
from keepfrac.sparse.late.around import around_for
from keepfrac.sparse.late.carried import NO_GRADS, Input
from keepfrac.sparse.late.gradients import Gradients
from keepfrac.sparse.late.linears import Joined, read
from keepfrac.sparse.late.needs import Needs
from keepfrac.sparse.late.products import compute_dtype, gather, live_rows, without_autocast
from keepfrac.sparse.late.rows import choose
from keepfrac.sparse.late.settings import PROBABILITIES, ROWS_IN, ROWS_OUT, Plan
from keepfrac.sparse.late.tally import count_saved, refuse_double_backward


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
        _sample(context, b, length).view(length, plan.heads, -1).copy_(torch.bmm(probs, value).transpose(0, 1))
    return context


def _attend_grad(
    kernels, stored: tuple[Tensor, Tensor], bias: Tensor | None, d_context: Tensor, context: Tensor | None, plan: Plan
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
            _sample(context, b, length).view(length, plan.heads, -1).copy_(torch.bmm(probs, value).transpose(0, 1))
    return d_qkv


class AttentionBlock(torch.autograd.Function):
    """See the module. Returns y (batch, length, width) and its normalised rows as stored: data, scales."""

    @staticmethod
    def forward(ctx, x, data, scales, x_gamma, x_beta, gamma, beta, gates, bias, plan, *tensors):
        compute = compute_dtype(x)
        formats = plan.storing.formats(x.dtype, compute)
        kernels = kernels_for(plan.settings.kernels, x, compute)
        *into, back = read(tensors, plan.layouts)
        around = around_for(plan)(kernels, plan, (gamma, beta), compute)
        needs = Needs.of(ctx, plan)
        with without_autocast(x):
            stream = x.reshape(-1, x.shape[-1]).contiguous()
            qkv = Joined(into, compute).forward(around.enter(stream, formats).to(compute))
            context = _attend(kernels, qkv, bias, plan)
            stored_qkv = kernels.pack(qkv, formats.attention)
            del qkv
            stored_context = (context.new_empty(0),) * 2
            if needs.context and plan.storing.context == "save":
                stored_context = kernels.pack(context, formats.attention)
            if gates is not None:
                context = context * gates.to(compute)
            y = around.leave(Joined([back], compute).forward(context), stream, formats)
        kept = (*stored_qkv, *stored_context, *around.kept)
        ctx.save_for_backward(data, scales, x_gamma, x_beta, gamma, beta, gates, bias, *kept, *tensors)
        ctx.plan, ctx.compute = plan, compute
        ctx.mark_non_differentiable(*(one for one in around.carried if one is not None))
        ctx.set_materialize_grads(False)  # or zeros would be made for the two
        count_saved(plan, x, compute, kept, inner=4 * len(into[0].bias), reads=needs.into)
        # not a view: autograd forbids to change a view of a custom function in place
        return torch.ops.aten._unsafe_view(y, x.shape), *around.carried

    @staticmethod
    def backward(ctx, dy, _data, _scales):
        refuse_double_backward()
        if dy is None:
            return (None,) * len(ctx.needs_input_grad)
        data, scales, x_gamma, x_beta, gamma, beta, gates, bias, *others = ctx.saved_tensors
        *stored_qkv, context, context_scales = others[:4]
        plan, compute, needs = ctx.plan, ctx.compute, Needs.of(ctx, ctx.plan)
        kernels, settings = kernels_for(plan.settings.kernels, dy, compute), plan.settings
        around = around_for(plan)(kernels, plan, (gamma, beta), compute, tuple(others[4:7]))
        *into, back = read(others[7:], plan.layouts)
        with without_autocast(dy):
            rows = dy.reshape(-1, dy.shape[-1]).contiguous()
            d_out, norms, total = around.open(rows)
            behind, before = Joined([back], compute), Joined(into, compute)
            d_gated = behind.input_grad(d_out, live_rows(norms, settings.skip_zero_rows))
            d_context = d_gated if gates is None else d_gated * gates.to(compute)
            recomputed = None
            if needs.context and plan.storing.context == "recompute":
                recomputed = torch.empty_like(d_context)
            d_qkv = _attend_grad(kernels, stored_qkv, bias, d_context, recomputed, plan)
            if recomputed is not None:
                context, context_scales = recomputed, recomputed.new_empty(0)
            del d_context, recomputed
            d_gates = _gates_grad(kernels, d_gated, context, context_scales, gates) if needs.gates else None
            del d_gated
            nothing = None if gates is None else torch.zeros_like(gates)
            read_behind = Input(context, context_scales, gates, nothing)
            back_grads, used_behind = _grads(kernels, behind, needs.of_back, d_out, read_behind, norms, plan, ROWS_OUT)
            del d_out, context, read_behind
            norms = torch.linalg.vector_norm(d_qkv, dim=1, dtype=torch.promote_types(compute, torch.float32))
            read_before = around.input(Input(data, scales, x_gamma, x_beta))
            into_grads, used_before = _grads(kernels, before, needs.of_into, d_qkv, read_before, norms, plan, ROWS_IN)
            if ctx.needs_input_grad[0] or plan.in_front:
                live = live_rows(norms, settings.skip_zero_rows)
                before.add_input_grad(total, live, gather(d_qkv, live))
            d_x = around.close(rows, total)
            plan.tally.add(plan.real, *used_behind, *used_before)
        return (
            d_x.view_as(dy), *NO_GRADS, around.d_gamma, around.d_beta, d_gates, None, None,
            *into_grads.totals, *back_grads.totals,
        )  # fmt: skip


def _gates_grad(kernels, d_gated: Tensor, context: Tensor, scales: Tensor, gates: Tensor) -> Tensor:
    """Returns the gradient to the factors of the context's columns, over all rows; (width,)."""
    whole = kernels.unpack(context, scales, None, None, None, None, d_gated.dtype)
    return (d_gated * whole).sum(0, dtype=gates.dtype)


def _grads(
    kernels, linears: Joined, needs: Sequence[bool], g: Tensor, x: Input, norms: Tensor, plan: Plan, site: int
) -> tuple[Gradients, list[int]]:
    """Returns the gradients of linears whose outputs' gradient is g, and how many rows formed them.

    Args:
        kernels: compiled or plain.
        linears: they read x.
        needs: of their tensors.
        g: (rows, outputs).
        x: their input as it is stored.
        norms: of the rows of g, by which they are chosen.
        plan: of this call.
        site: what the choice draws from.
    """
    grads = Gradients(linears, needs)
    grads.add_biases(g)
    if not grads.wants_rows:
        return grads, []
    chosen = choose(norms, plan.budget(), plan.settings.rows, plan.seed_of(site))
    inputs = kernels.unpack(x.data, x.scales, chosen.index, x.gamma, x.beta, chosen.weight, g.dtype)
    grads.add(gather(g, chosen.index), inputs)
    return grads, [chosen.count(plan.real)]
