"""Feed-forward, dropout, residual and LayerNorm as one autograd function that saves 8-bit numbers.

    h = x W1' + b1      a = act(h)      y = LayerNorm(dropout(a W2' + b2) + x)

Saved: x (in the stored form that its LayerNorm left), h (which gives act's slope and, for the chosen rows, a), the
normalised rows of y's LayerNorm and its 1 / deviation. Both passes go over pieces of CHUNK tokens, so that h and its
gradient, four times as wide as the rest, never exist as a whole. One choice of rows serves both weights: the gradient
of h has its zero rows where that of the output has, and is large where that is large.
"""

from itertools import pairwise

import torch
from torch import Tensor

from src.sparse.kernels import kernels_for
from src.sparse.late.activations import activation_for
from src.sparse.late.products import (
    add_outer,
    add_product,
    column_sums,
    compute_dtype,
    gather,
    live_rows,
    without_autocast,
)
from src.sparse.late.rows import Choice, choose
from src.sparse.late.settings import OUTPUT, ROWS_OUT
from src.sparse.late.tally import count_saved, refuse_double_backward

CHUNK = 2048  # tokens


def pieces(count: int) -> list[slice]:
    """Returns slices of CHUNK that cover range(count)."""
    return [slice(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]


def chosen_in(
    chosen: Choice, live: Tensor | None, parts: list[slice]
) -> list[tuple[Tensor | None, Tensor | None]]:
    """Returns for each piece of the live rows: the places in it of the chosen rows, and their factors.

    Places None: every row of the piece. The chosen rows are live and ascending, and so are the live ones.
    """
    index, weight = chosen.index, chosen.weight
    if index is None:
        return [(None, None)] * len(parts)
    places = index if live is None else torch.searchsorted(live, index)
    edges = torch.tensor([part.start for part in parts], device=places.device)
    starts = [*torch.searchsorted(places, edges).tolist(), len(places)]
    ranges = [slice(*pair) for pair in pairwise(starts)]
    return [
        (places[some] - part.start, None if weight is None else weight[some])
        for part, some in zip(parts, ranges, strict=True)
    ]


class FeedForwardBlock(torch.autograd.Function):
    """See the module. Returns y (batch, length, width) and its normalised rows as stored: data, scales."""

    @staticmethod
    def forward(ctx, x, data, scales, x_gamma, x_beta, w1, b1, w2, b2, gamma, beta, plan):
        compute = compute_dtype(x)
        formats, kernels = (
            plan.storing.formats(x.dtype, compute),
            kernels_for(plan.settings.kernels, x, compute),
        )
        activation = activation_for(plan.activation, kernels)
        with without_autocast(x):
            stream = x.reshape(-1, x.shape[-1]).contiguous()
            into, back = w1.to(compute).t(), w2.to(compute).t()
            out = stream.new_empty(stream.shape, dtype=compute)
            inner, inner_scales = activation.room(len(stream), w1.shape[0], formats.inner, x.device)
            for part in pieces(len(stream)):
                h = torch.addmm(b1.to(compute), stream[part].to(compute), into)
                a = activation.forward(h, inner[part], inner_scales[part])
                torch.addmm(b2.to(compute), a, back, out=out[part])
            seed = plan.seed_of(OUTPUT)
            y, hat, hat_scales, rstd = kernels.add_norm(
                out, stream, gamma, beta, plan.eps, plan.p, seed, formats.hat
            )
        kept = (inner, inner_scales, hat, hat_scales, rstd)
        ctx.save_for_backward(data, scales, x_gamma, x_beta, w1, w2, gamma, *kept)
        ctx.plan, ctx.compute = plan, compute
        ctx.mark_non_differentiable(hat, hat_scales)
        ctx.set_materialize_grads(False)  # or zeros would be made for the two
        count_saved(plan, x, compute, kept, inner=2 * w1.shape[0])
        # not a view: autograd forbids to change a view of a custom function in place
        return torch.ops.aten._unsafe_view(y, x.shape), hat, hat_scales

    @staticmethod
    def backward(ctx, dy, _data, _scales):
        refuse_double_backward()
        if dy is None:
            return (None,) * len(ctx.needs_input_grad)
        data, scales, x_gamma, x_beta, w1, w2, gamma, inner, inner_scales, hat, hat_scales, rstd = (
            ctx.saved_tensors
        )
        plan, compute, needs = ctx.plan, ctx.compute, ctx.needs_input_grad
        kernels, settings = kernels_for(plan.settings.kernels, dy, compute), plan.settings
        activation = activation_for(plan.activation, kernels)
        with without_autocast(dy):
            rows = dy.reshape(-1, dy.shape[-1]).contiguous()
            d_x, d_out, d_gamma, d_beta, norms = kernels.add_norm_grad(
                rows, hat, hat_scales, rstd, gamma, plan.p, plan.seed_of(OUTPUT), compute
            )
            chosen = choose(norms, plan.budget(), settings.rows, plan.seed_of(ROWS_OUT))
            live = live_rows(norms, settings.skip_zero_rows)
            every = torch.arange(len(rows), device=dy.device) if live is None else live
            d_w1, d_w2 = torch.zeros_like(w1), torch.zeros_like(w2)
            d_b1 = w1.new_zeros(w1.shape[0])
            into, back = w1.to(compute), w2.to(compute)
            parts = pieces(len(every))
            for part, (places, weight) in zip(parts, chosen_in(chosen, live, parts), strict=True):
                tokens = every[part]
                here = part if live is None else tokens
                some = gather(tokens, places)
                g = gather(d_out, here)
                if needs[7]:
                    add_outer(
                        d_w2, gather(g, places), activation.rows(inner, inner_scales, some, weight, compute)
                    )
                d_h = activation.backward(g @ back, inner, inner_scales, tokens)
                d_b1 += column_sums(d_h, w1.dtype)
                if needs[5]:
                    inputs = kernels.unpack(data, scales, some, x_gamma, x_beta, weight, compute)
                    add_outer(d_w1, gather(d_h, places), inputs)
                if needs[0]:
                    add_product(d_x, here, d_h, into)
            d_b2 = column_sums(d_out, w2.dtype)
            plan.tally.add(plan.real, chosen.count(plan.real))
        return d_x.view_as(dy), None, None, None, None, d_w1, d_b1, d_w2, d_b2, d_gamma, d_beta, None
