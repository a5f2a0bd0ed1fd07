"""Attention, dropout, residual and LayerNorm as one autograd function that saves 8-bit numbers.

    q, k, v = x Wq' + bq, ...      P = dropout(softmax(q k' scale + mask))      c = P v
    y = LayerNorm(dropout((z o c) Wo' + bo) + x)      z: gates of the heads, where there are any

Saved: x (in the stored form that its LayerNorm left), q, k, v, optionally c, the normalised rows of y's LayerNorm and
its 1 / deviation. Not saved: P (recomputed, one sample at a time, so that it stays in the processor's cache), dropout
masks (regenerated), c where neither Wo nor z learns. The gradients to x and z go over all rows; those to the weights
over the chosen ones, and a frozen weight has none. With the LayerNorm in front see norms.py.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from keepfrac.sparse.act8bit.calls import PROBABILITIES, ROWS_IN, ROWS_OUT, Call, refuse_double_backward
from keepfrac.sparse.act8bit.linears import FusedLinear, compute_dtype, unpack_linears, without_autocast
from keepfrac.sparse.act8bit.masked_attention import MaskedAttention, Positions
from keepfrac.sparse.act8bit.norms import NO_GRADS, PackedInput
from keepfrac.sparse.act8bit.rms_norms import norm_around
from keepfrac.sparse.act8bit.weight_gradients import Gradients, NeedsGrad, choose_rows, gather, live_rows
from keepfrac.sparse.kernels import kernels_for


class _Attention:
    """The attention of encoders, softmax(q k' scale + mask) v, sample by sample.

    Args:
        kernels: compiled or plain.
        bias: (batch, length), added to the scores of each key; None: nothing.
        call: of the block.
    """

    def __init__(self, kernels: Any, bias: Tensor | None, call: Call) -> None:
        assert call.attention is not None
        self.kernels, self.bias, self.call, self.config = kernels, bias, call, call.attention
        self.d_gammas = (None, None)  # of norms that it does not have

    def _split(self, rows: Tensor) -> Tensor:
        """One sample's fused projections (length, 3 * heads * d_head) as (3, heads, length, d_head), a view."""
        return rows.view(self.call.shape[1], 3, self.config.heads, -1).permute(1, 2, 0, 3)

    def _by_head(self, rows: Tensor) -> Tensor:
        """One sample's context (length, heads * d_head) as (heads, length, d_head), a view."""
        return rows.view(self.call.shape[1], self.config.heads, -1).transpose(0, 1)

    def _sample(self, x: Tensor, b: int) -> Tensor:
        length = self.call.shape[1]
        return x[b * length : (b + 1) * length] if x.numel() else x

    def _mask(self, b: int) -> Tensor | None:
        return None if self.bias is None else self.bias[b]

    def forward(self, qkv: Tensor) -> Tensor:
        """Returns the context (batch * length, heads * d_head) of the fused projections (batch * length, 3 * ...)."""
        (scale, p), call = self.config[1:3], self.call
        context = qkv.new_empty(len(qkv), qkv.shape[1] // 3)
        for b in range(call.shape[0]):
            query, key, value = self._split(self._sample(qkv, b))
            probs = torch.bmm(query, key.transpose(1, 2))
            probs = self.kernels.softmax_(probs, scale, self._mask(b), p, call.seed_of(PROBABILITIES, b))
            self._by_head(self._sample(context, b)).copy_(torch.bmm(probs, value))
        return context

    def backward(self, qkv: PackedInput, d_context: Tensor, context: Tensor | None) -> Tensor:
        """Returns the gradient to the fused projections; fills `context` with the forward's, where one is given."""
        (scale, p), call = self.config[1:3], self.call
        d_qkv = d_context.new_empty(len(d_context), 3 * d_context.shape[1])
        for b in range(call.shape[0]):
            stored = PackedInput(self._sample(qkv.data, b), self._sample(qkv.scales, b))
            query, key, value = self._split(stored.unpack(self.kernels, d_context.dtype))
            d_query, d_key, d_value = self._split(self._sample(d_qkv, b))
            d_out = self._by_head(self._sample(d_context, b))
            scores, d_probs = torch.bmm(query, key.transpose(1, 2)), torch.bmm(d_out, value.transpose(1, 2))
            seed = call.seed_of(PROBABILITIES, b)
            probs, d_scores = self.kernels.softmax_grad_(scores, d_probs, scale, self._mask(b), p, seed)
            d_value.copy_(torch.bmm(probs.transpose(1, 2), d_out))
            d_query.copy_(torch.bmm(d_scores, key))
            d_key.copy_(torch.bmm(d_scores.transpose(1, 2), query))
            if context is not None:
                self._by_head(self._sample(context, b)).copy_(torch.bmm(probs, value))
        return d_qkv


def _attention(kernels: Any, mask: Tensor | None, call: Call, positions: Positions) -> _Attention | MaskedAttention:
    assert call.attention is not None
    if call.attention.masked:
        return MaskedAttention(kernels, mask, call, positions)
    return _Attention(kernels, mask, call)


class AttentionBlock(torch.autograd.Function):
    """See the module. Returns y (batch, length, width) and its normalised rows as stored: data, scales."""

    @staticmethod
    def forward(
        ctx, x, data, scales, x_gamma, x_beta, gamma, beta, output_gamma, gates, bias, call, *positions_and_linears
    ):
        positions, tensors = Positions(*positions_and_linears[:4]), positions_and_linears[4:]
        compute = compute_dtype(x)
        kernels, kind = kernels_for(call.settings.kernels, x, compute), call.storage.dtype("attention", compute)
        *into, back = unpack_linears(tensors, call.layouts)
        norms = {"gamma": gamma, "beta": beta, "output_gamma": output_gamma}
        around = norm_around(call, kernels=kernels, compute=compute, **norms)
        needs = NeedsGrad.of(ctx.needs_input_grad, call.layouts)
        with without_autocast(x):
            residual = x.reshape(-1, x.shape[-1]).contiguous()
            qkv = FusedLinear(into, compute).forward(around.enter(residual).to(compute))
            context = _attention(kernels, bias, call, positions).forward(qkv)
            stored_qkv = kernels.pack(qkv, kind)
            values = qkv.shape[1] + context.shape[1]
            if call.attention.head_eps:  # written out by the models: two numbers more of each query and key
                values += 2 * (call.attention.heads + call.attention.kv_heads) * call.attention.head_dim
            if len(into) == 1 and positions.cos is not None:  # rotated copies, beside the packed whole that v views
                values += (call.attention.heads + call.attention.kv_heads) * call.attention.head_dim
            del qkv
            stored_context = (context.new_empty(0),) * 2
            if needs.last_input and call.storage.context == "save":
                stored_context = kernels.pack(context, kind)
            if gates is not None:
                context = context * gates.to(compute)
            y = around.leave(FusedLinear([back], compute).forward(context), residual)
        kept = (*stored_qkv, *stored_context, *around.kept)
        given = (gamma, beta, output_gamma, gates, bias)
        ctx.save_for_backward(data, scales, x_gamma, x_beta, *given, *kept, *positions_and_linears)
        ctx.call, ctx.compute = call, compute
        ctx.mark_non_differentiable(*(one for one in around.output if one is not None))
        ctx.set_materialize_grads(False)  # or zeros would be made for the two
        call.count_saved(x, kept, compute, values=values, reads=needs.first_input)
        # not a view: autograd forbids to change a view of a custom function in place
        return torch.ops.aten._unsafe_view(y, x.shape), *around.output

    @staticmethod
    def backward(ctx, dy, _data, _scales):
        refuse_double_backward()
        if dy is None:
            return (None,) * len(ctx.needs_input_grad)
        saved = ctx.saved_tensors
        *packed, gamma, beta, output_gamma, gates, bias = saved[:9]
        stored_qkv, stored_context = PackedInput(*saved[9:11]), PackedInput(*saved[11:13])
        call, compute, settings = ctx.call, ctx.compute, ctx.call.settings
        needs, kernels = NeedsGrad.of(ctx.needs_input_grad, call.layouts), kernels_for(settings.kernels, dy, compute)
        norms_end = 13 + call.norm.num_kept
        of_norms = {"gamma": gamma, "beta": beta, "output_gamma": output_gamma, "kept": saved[13:norms_end]}
        around = norm_around(call, kernels=kernels, compute=compute, **of_norms)
        positions, tensors = Positions(*saved[norms_end : norms_end + 4]), saved[norms_end + 4 :]
        *into, back = unpack_linears(tensors, call.layouts)
        with without_autocast(dy):
            rows = dy.reshape(-1, dy.shape[-1]).contiguous()
            d_out, norms, total = around.open(rows)
            first, last = FusedLinear(into, compute), FusedLinear([back], compute)
            d_gated = last.input_grad(d_out, live_rows(norms, settings.skip_zero_rows))
            d_context = d_gated if gates is None else d_gated * gates.to(compute)
            again = needs.last_input and call.storage.context == "recompute"
            recomputed = torch.empty_like(d_context) if again else None
            attention = _attention(kernels, bias, call, positions)
            d_qkv = attention.backward(stored_qkv, d_context, recomputed)
            if recomputed is not None:
                stored_context = PackedInput(recomputed, recomputed.new_empty(0))
            del d_context, recomputed
            d_gates = None
            if needs.gates:  # over all rows
                d_gates = (d_gated * stored_context.unpack(kernels, compute)).sum(0, dtype=gates.dtype)
            del d_gated
            grads = _ChosenRows(kernels, call)
            nothing = None if gates is None else torch.zeros_like(gates)
            gated = stored_context._replace(gamma=gates, beta=nothing)
            last_grads = grads.of(last, needs.back, site=ROWS_OUT, g=d_out, x=gated, norms=norms)
            del d_out, stored_context, gated
            norms = torch.linalg.vector_norm(d_qkv, dim=1, dtype=torch.promote_types(compute, torch.float32))
            entered = around.input(PackedInput(*packed))
            first_grads = grads.of(first, needs.into, site=ROWS_IN, g=d_qkv, x=entered, norms=norms)
            if ctx.needs_input_grad[0] or call.norm.pre_norm:
                live = live_rows(norms, settings.skip_zero_rows)
                first.add_input_grad(total, live, gather(d_qkv, live))
            d_x = around.close(rows, total)
            call.stats.add(call.real, *grads.used)
        return (
            d_x.view_as(dy), *NO_GRADS, around.d_gamma, around.d_beta, around.d_output_gamma, d_gates, None, None,
            None, None, *attention.d_gammas, *first_grads.totals, *last_grads.totals,
        )  # fmt: skip


class _ChosenRows:
    """The gradients of linears of one call, each over rows of its own choice."""

    def __init__(self, kernels: Any, call: Call) -> None:
        self.kernels, self.call = kernels, call
        self.used: list[int] = []  # rows of each choice

    def of(
        self, linears: FusedLinear, wanted: Sequence[bool], *, site: int, g: Tensor, x: PackedInput, norms: Tensor
    ) -> Gradients:
        """Returns the gradients of linears.

        Args:
            linears: they read x.
            wanted: of their tensors, whether each wants a gradient.
            site: what the choice draws from.
            g: (rows, outputs), the gradient to their outputs.
            x: their input as it is stored.
            norms: of the rows of g, by which they are chosen.
        """
        grads, call = Gradients(linears, wanted), self.call
        grads.add_biases(g)
        if grads.wants_rows:
            chosen = choose_rows(norms, call.budget(), rule=call.settings.rows, seed=call.seed_of(site))
            inputs = x.unpack(self.kernels, g.dtype, chosen)
            grads.add(gather(g, chosen.index), inputs)
            self.used.append(chosen.count(call.real))
        return grads
