"""Feed-forward, dropout, residual and LayerNorm as one autograd function that saves 8-bit numbers.

    h = x W1' + b1      a = z o act(h)      y = LayerNorm(dropout(a W2' + b2) + x)      z: gates of the neurons, if any

Saved: x (in the stored form that its LayerNorm left), h (which gives act's slope and, for the chosen rows, a), the
normalised rows of y's LayerNorm and its 1 / deviation. Both passes go over pieces of CHUNK tokens, so that h and its
gradient, four times as wide as the rest, never exist as a whole. One choice of rows serves both weights: the gradient
of h has its zero rows where that of the output has, and is large where that is large. The gradient of z goes over all
rows. With the LayerNorm in front see around.py.
"""

from itertools import pairwise

import torch
from torch import Tensor

from keepfrac.sparse.kernels import kernels_for
from keepfrac.sparse.late.activations import activation_for
from keepfrac.sparse.late.around import around_for
from keepfrac.sparse.late.carried import NO_GRADS, Input
from keepfrac.sparse.late.gradients import Gradients
from keepfrac.sparse.late.linears import Joined, read
from keepfrac.sparse.late.needs import Needs
from keepfrac.sparse.late.products import compute_dtype, gather, live_rows, without_autocast
from keepfrac.sparse.late.rows import ALL, Choice, choose
from keepfrac.sparse.late.settings import ROWS_OUT
from keepfrac.sparse.late.tally import count_saved, refuse_double_backward

CHUNK = 2048  # tokens


def pieces(count: int) -> list[slice]:
    """Returns slices of CHUNK that cover range(count)."""
    return [slice(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]


def chosen_in(chosen: Choice, live: Tensor | None, parts: list[slice]) -> list[tuple[Tensor | None, Tensor | None]]:
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
    def forward(ctx, x, data, scales, x_gamma, x_beta, gamma, beta, gates, _bias, plan, *tensors):
        compute = compute_dtype(x)
        formats = plan.storing.formats(x.dtype, compute)
        kernels = kernels_for(plan.settings.kernels, x, compute)
        before, behind = (Joined([one], compute) for one in read(tensors, plan.layouts))
        activation = activation_for(plan.activation, kernels)
        around = around_for(plan)(kernels, plan, (gamma, beta), compute)
        with without_autocast(x):
            stream = x.reshape(-1, x.shape[-1]).contiguous()
            entered = around.enter(stream, formats)
            out = stream.new_empty(stream.shape, dtype=compute)
            inner, inner_scales = activation.room(len(stream), len(before.bias), formats.inner, x.device)
            factors = None if gates is None else gates.to(compute)
            for part in pieces(len(stream)):
                h = before.forward(entered[part].to(compute))
                a = activation.forward(h, inner[part], inner_scales[part])
                behind.forward(a if factors is None else a * factors, out=out[part])
            y = around.leave(out, stream, formats)
        kept = (inner, inner_scales, *around.kept)
        ctx.save_for_backward(data, scales, x_gamma, x_beta, gamma, beta, gates, *kept, *tensors)
        ctx.plan, ctx.compute = plan, compute
        ctx.mark_non_differentiable(*(one for one in around.carried if one is not None))
        ctx.set_materialize_grads(False)  # or zeros would be made for the two
        needs = Needs.of(ctx, plan)
        sides = 1 + (needs.back or needs.gates)  # of the activation function
        count_saved(plan, x, compute, kept, inner=sides * len(before.bias), reads=needs.into)
        # not a view: autograd forbids to change a view of a custom function in place
        return torch.ops.aten._unsafe_view(y, x.shape), *around.carried

    @staticmethod
    def backward(ctx, dy, _data, _scales):
        refuse_double_backward()
        if dy is None:
            return (None,) * len(ctx.needs_input_grad)
        data, scales, x_gamma, x_beta, gamma, beta, gates, inner, inner_scales, *others = ctx.saved_tensors
        plan, compute, needs = ctx.plan, ctx.compute, Needs.of(ctx, ctx.plan)
        kernels, settings = kernels_for(plan.settings.kernels, dy, compute), plan.settings
        around = around_for(plan)(kernels, plan, (gamma, beta), compute, tuple(others[:3]))
        before, behind = (Joined([one], compute) for one in read(others[3:], plan.layouts))
        activation = activation_for(plan.activation, kernels)
        stored = around.input(Input(data, scales, x_gamma, x_beta))
        with without_autocast(dy):
            rows = dy.reshape(-1, dy.shape[-1]).contiguous()
            d_out, norms, total = around.open(rows)
            learns = needs.into or needs.back
            chosen = choose(norms, plan.budget(), settings.rows, plan.seed_of(ROWS_OUT)) if learns else ALL
            live = live_rows(norms, settings.skip_zero_rows)
            every = torch.arange(len(rows), device=dy.device) if live is None else live
            into_grads = Gradients(before, needs.of_into)
            back_grads = Gradients(behind, needs.of_back)
            factors = None if gates is None else gates.to(compute)
            d_gates = torch.zeros_like(gates) if needs.gates else None
            parts = pieces(len(every))
            for part, (places, weight) in zip(parts, chosen_in(chosen, live, parts), strict=True):
                tokens = every[part]
                here = part if live is None else tokens
                some = gather(tokens, places)
                g = gather(d_out, here)
                if needs.back:
                    a = activation.rows(inner, inner_scales, some, weight, compute)
                    back_grads.add(gather(g, places), a if factors is None else a * factors)
                d_a = behind.input_grad(g, None)
                if d_gates is not None:
                    a = activation.rows(inner, inner_scales, tokens, None, compute)
                    d_gates += (d_a * a).sum(0, dtype=d_gates.dtype)
                if factors is not None:
                    d_a = d_a * factors
                d_h = activation.backward(d_a, inner, inner_scales, tokens)
                into_grads.add_biases(d_h)
                if needs.into:
                    inputs = kernels.unpack(
                        stored.data, stored.scales, some, stored.gamma, stored.beta, weight, compute
                    )
                    into_grads.add(gather(d_h, places), inputs)
                if ctx.needs_input_grad[0] or plan.in_front:
                    before.add_input_grad(total, here, d_h)
            back_grads.add_biases(d_out)
            d_x = around.close(rows, total)
            if learns:
                plan.tally.add(plan.real, chosen.count(plan.real))
        return (
            d_x.view_as(dy), *NO_GRADS, around.d_gamma, around.d_beta, d_gates, None, None,
            *into_grads.totals, *back_grads.totals,
        )  # fmt: skip
