"""A linear of any network: its input is stored, and the rows of its weight gradient are chosen in the backward pass."""

from dataclasses import dataclass, field
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from keepfrac.sparse.act8bit.calls import RowStats, SeedCounter, refuse_double_backward
from keepfrac.sparse.act8bit.linears import FusedLinear, LinearSpec, compute_dtype, without_autocast
from keepfrac.sparse.act8bit.saved import SavedTensors, Stored
from keepfrac.sparse.act8bit.settings import Act8bitSettings
from keepfrac.sparse.act8bit.weight_gradients import Gradients, choose_rows, gather, live_rows
from keepfrac.sparse.context import Context
from keepfrac.sparse.kernels import kernels_for


@dataclass
class LinearState:
    """The state of a converted linear except its parameters.

    Attributes:
        settings: how it chooses.
        seeds: of its calls.
        saved: stores its input.
        context: which tokens are real.
        stats: its counts.
    """

    settings: Act8bitSettings
    seeds: SeedCounter
    saved: SavedTensors
    context: Context
    stats: RowStats = field(default_factory=RowStats)

    def real_rows(self, x: Tensor) -> int:
        """Returns how many of the rows of x (..., width) are no padding."""
        padding = self.context.padding(*x.shape[:2]) if x.dim() == 3 else None
        return x.numel() // x.shape[-1] if padding is None else sum(padding.counts)

    def budget(self, rows: int, real: int) -> int:
        """Returns how many rows a weight gradient may use: keep_frac of the real ones, all at keep_frac 1."""
        return rows if self.settings.keep_frac == 1 else max(1, ceil(self.settings.keep_frac * real))


@dataclass(frozen=True)
class _Call:
    """The constants of one call."""

    late: LinearState
    real: int
    seed: int
    compute: torch.dtype


class LateLinearFunction(torch.autograd.Function):
    """F.linear whose weight gradient is formed from the rows that are chosen when its gradient is known."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, data: Tensor, scales: Tensor, call: _Call
    ) -> Tensor:
        """Returns X W^T + b of X (..., in) and W (out, in); saves W, and X as `data` and `scales`."""
        ctx.call = call
        ctx.save_for_backward(weight, bias, data, scales)
        with without_autocast(x):
            rows = x.reshape(-1, x.shape[-1]).to(call.compute)
            y = FusedLinear([LinearSpec(weight, bias)], call.compute).forward(rows)
        # not a view: autograd forbids to change a view of a custom function in place
        return torch.ops.aten._unsafe_view(y, [*x.shape[:-1], len(weight)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        """Returns dX, exact; dW of the chosen rows; db, exact."""
        refuse_double_backward()
        (dy,), call = grads, ctx.call
        weight, bias, *stored = ctx.saved_tensors
        late, settings = call.late, call.late.settings
        with without_autocast(dy):
            linear = FusedLinear([LinearSpec(weight, bias)], call.compute)
            g = dy.reshape(-1, dy.shape[-1]).to(call.compute).contiguous()
            norms = torch.linalg.vector_norm(g, dim=1, dtype=torch.promote_types(g.dtype, torch.float32))
            found = Gradients(linear, ctx.needs_input_grad[1:3])
            if ctx.needs_input_grad[1]:
                chosen = choose_rows(norms, late.budget(len(g), call.real), rule=settings.rows, seed=call.seed)
                kernels = kernels_for(settings.kernels, g, call.compute)
                x = Stored(*stored).read(kernels, chosen.index, chosen.weight, call.compute)
                found.add(gather(g, chosen.index), x)
                late.stats.add(call.real, min(call.real, chosen.count(len(g))))
            found.add_biases(g)
            dx = linear.input_grad(g, live_rows(norms, settings.skip_zero_rows)) if ctx.needs_input_grad[0] else None
        return (None if dx is None else dx.view(*dy.shape[:-1], -1), *found.totals, None, None, None)


class LateLinear(nn.Linear):
    """`nn.Linear` that chooses rows in the backward pass.

    A linear becomes one by `change_class`. It is `nn.Linear` to the bit in evaluation mode, without grad, for a single
    row, and with a frozen weight, for which nothing of its input is saved.
    """

    late: LinearState

    @torch.compiler.disable
    def forward(self, x: Tensor) -> Tensor:
        """Returns X W^T + b."""
        trains = self.training and torch.is_grad_enabled() and self.weight.requires_grad
        if not trains or x.dim() < 2 or x.numel() == 0:
            return super().forward(x)
        late = self.late
        stored, new = late.saved.rows(x)
        late.stats.saved_bytes = new
        late.stats.dense_bytes = x.numel() * compute_dtype(x).itemsize if new else 0
        call = _Call(late, late.real_rows(x), seed=late.seeds.seed_for(x), compute=compute_dtype(x))
        return LateLinearFunction.apply(x, self.weight, self.bias, *stored, call)
