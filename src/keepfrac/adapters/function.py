"""The forward and backward pass of a linear with updates: nothing of W's size is made, none of W's gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Adapted(torch.autograd.Function):
    """y = x W^T + b + sum of s (z V^T U^T + z S2^T) over the updates, where z is x, or x after dropout."""

    @staticmethod
    def forward(ctx, x, z, weight, bias, layout, *tensors):
        device, (transposed, parts) = x.device.type, layout
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        x2, z2 = (_flat(x, dtype), None if z is None else _flat(z, dtype))
        matrix = weight.to(dtype) if transposed else weight.to(dtype).t()
        y = x2 @ matrix if bias is None else torch.addmm(bias.to(dtype), x2, matrix)
        source, hidden = (x2 if z2 is None else z2), []
        for (rows, scale), (u, v, values, positions) in zip(parts, _by_four(tensors), strict=True):
            hidden.append(source @ v.to(dtype).t())
            y[:, rows].addmm_(hidden[-1], u.to(dtype).t(), alpha=scale)
            if values is not None:
                into, out_of = unravel_positions(positions, v.shape[1])
                y[:, rows].index_add_(1, into, source[:, out_of] * (scale * values).to(dtype))
        ctx.save_for_backward(x2, z2, weight, *tensors, *hidden)
        ctx.layout, ctx.shape, ctx.dtypes = layout, x.shape, (x.dtype, None if bias is None else bias.dtype)
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    def backward(ctx, grad):
        transposed, parts = ctx.layout
        x2, z2, weight, *saved = ctx.saved_tensors
        tensors, hidden = saved[: 4 * len(parts)], saved[4 * len(parts) :]
        g = grad.reshape(-1, grad.shape[-1]).to(x2.dtype)
        matrix = weight.to(g.dtype)
        wants_x, wants_z, wants_weight, wants_bias = ctx.needs_input_grad[:4]
        dx = g @ (matrix.t() if transposed else matrix) if wants_x else None
        dz = torch.zeros_like(z2) if wants_z else None
        into = dx if z2 is None else dz
        source, grads = x2 if z2 is None else z2, []
        for (rows, scale), (u, v, values, positions), h in zip(parts, _by_four(tensors), hidden, strict=True):
            grads += _of_update(g[:, rows], source, h, into, scale=scale, u=u, v=v, values=values, positions=positions)
        dweight = (x2.t() @ g if transposed else g.t() @ x2).to(weight.dtype) if wants_weight else None
        dbias = g.sum(0).to(ctx.dtypes[1]) if wants_bias else None
        dx, dz = (None if t is None else t.view(ctx.shape).to(ctx.dtypes[0]) for t in (dx, dz))
        return dx, dz, dweight, dbias, None, *grads


def _of_update(g, source, h, into, *, scale, u, v, values, positions) -> list[Tensor | None]:
    """The gradients of U, V and S2's values, and what is added to the gradient of the input, in place."""
    below = g @ u.to(g.dtype)
    du = (scale * (g.t() @ h)).to(u.dtype)
    dv = (scale * (below.t() @ source)).to(v.dtype)
    if into is not None:
        into.addmm_(below, v.to(g.dtype), alpha=scale)
    if values is None:
        return [du, dv, None, None]
    out_of, columns = unravel_positions(positions, v.shape[1])
    picked = g[:, out_of]
    dvalues = scale * (picked * source[:, columns]).sum(0, dtype=values.dtype)
    if into is not None:
        into.index_add_(1, columns, picked * (scale * values).to(g.dtype))
    return [du, dv, dvalues, None]


def _flat(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.reshape(-1, x.shape[-1]).to(dtype)


def _by_four(tensors: Sequence) -> list[Sequence]:
    return [tensors[i : i + 4] for i in range(0, len(tensors), 4)]


def unravel_positions(positions: Tensor, inputs: int) -> tuple[Tensor, Tensor]:
    """Returns (rows, columns) of flat positions."""
    return positions // inputs, positions % inputs
