"""Feed-forward, dropout, residual and LayerNorm as one autograd function that saves 8-bit numbers.

    h = x W1' + b1      a = z o act(h)      y = LayerNorm(dropout(a W2' + b2) + x)      z: gates of the neurons, if any

Saved: x (in the stored form that its LayerNorm left), h (which gives act's slope and, for the chosen rows, a), the
normalised rows of y's LayerNorm and its 1 / deviation. Both passes go over pieces of CHUNK tokens, so that h and its
gradient, four times as wide as the rest, never exist as a whole. One choice of rows serves both weights: the gradient
of h has its zero rows where that of the output has, and is large where that is large. The gradient of z goes over all
rows. With the LayerNorm in front see norms.py.
GELU is stored, differentiated and rebuilt by its kernels, any other activation function by PyTorch.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from transformers.activations import ACT2CLS, GELUActivation, ReLUSquaredActivation

from keepfrac.sparse.act8bit.calls import INNER, ROWS_OUT, Call, refuse_double_backward
from keepfrac.sparse.act8bit.linears import FusedLinear, compute_dtype, unpack_linears, without_autocast
from keepfrac.sparse.act8bit.masked_attention import NO_POSITIONS
from keepfrac.sparse.act8bit.norms import NO_GRADS, PackedInput
from keepfrac.sparse.act8bit.rms_norms import norm_around
from keepfrac.sparse.act8bit.weight_gradients import ALL, Choice, Gradients, NeedsGrad, choose_rows, gather, live_rows
from keepfrac.sparse.kernels import kernels_for, plain
from keepfrac.sparse.kernels.plain import keep_mask

CHUNK = 2048  # tokens
KINKED = (nn.ReLU, nn.LeakyReLU, nn.ReLU6, ReLUSquaredActivation)


# classes, or classes with arguments
_STOCK = frozenset(one[0] if isinstance(one, tuple) else one for one in ACT2CLS.values())
Stored = tuple[Tensor, Tensor]
"""Inputs of an activation function, (rows, width), as they are stored: data, scales."""


class Gelu:
    """The exact GELU: stored, differentiated and rebuilt by one kernel each.

    Args:
        kernels: compiled or plain.
    """

    def __init__(self, kernels) -> None:
        self.kernels, self.forward = kernels, kernels.gelu_

    @staticmethod
    def allocate(shape: tuple[int, int], kind: torch.dtype, device: torch.device) -> Stored:
        """Returns empty buffers for inputs of the function, (rows, width)."""
        return plain.empty(*shape, kind, device)

    def backward(self, grad: Tensor, stored: Stored, index: Tensor) -> Tensor:
        """Returns grad times the function's slope at the stored rows `index`; grad may be overwritten."""
        return self.kernels.gelu_grad_(grad, *stored, index)

    def rows(self, stored: Stored, chosen: Choice, dtype: torch.dtype) -> Tensor:
        """Returns the function of the chosen stored rows, each times its factor."""
        return self.kernels.gelu_rows(*stored, chosen.index, chosen.weight, dtype)


class OtherActivation:
    """Another elementwise function.

    Its input is kept in bfloat16 at least, whatever is asked: with 8-bit steps a kink (ReLU's) would be missed by many
    numbers near it, and functions that do not vanish below -4 would be cut there.

    Args:
        function: for example a ReLU.
    """

    def __init__(self, function: nn.Module) -> None:
        self.function = function

    @staticmethod
    def allocate(shape: tuple[int, int], kind: torch.dtype, device: torch.device) -> Stored:
        """As `Gelu.allocate`."""
        return plain.empty(*shape, torch.bfloat16 if kind == torch.uint8 else kind, device)

    def forward(self, h: Tensor, data: Tensor, scales: Tensor) -> Tensor:
        """Stores h into data; returns the function of h."""
        data.copy_(h)
        return self.function(h)

    def backward(self, grad: Tensor, stored: Stored, index: Tensor) -> Tensor:
        """As `Gelu.backward`."""
        with torch.enable_grad():
            h = stored[0].index_select(0, index).to(grad.dtype).requires_grad_()
            (slope,) = torch.autograd.grad(self.function(h), h, grad)
        return slope

    def rows(self, stored: Stored, chosen: Choice, dtype: torch.dtype) -> Tensor:
        """As `Gelu.rows`."""
        x = self.function(gather(stored[0], chosen.index).to(dtype))
        return x if chosen.weight is None else x * chosen.weight.to(dtype).unsqueeze(1)


def is_known(function: nn.Module) -> bool:
    """Returns whether it is one of transformers' activation functions, without parameters."""
    return type(function) in _STOCK and not list(function.parameters())


class GatedActivation:
    """f(gate) * up, of h = [gate, up] side by side: SwiGLU, GeGLU.

    Smooth functions are kept in 8 bits, symmetric: their slopes do not vanish below -4. One with a kink is kept in
    bfloat16 at least, as by `OtherActivation`.

    Args:
        function: f.
        kernels: who packs and unpacks.
    """

    def __init__(self, function: nn.Module, kernels) -> None:
        self.function, self.kernels = function, kernels

    def allocate(self, shape: tuple[int, int], kind: torch.dtype, device: torch.device) -> Stored:
        """As `Gelu.allocate`."""
        own = torch.bfloat16 if isinstance(self.function, KINKED) else torch.int8
        return plain.empty(*shape, own if kind == torch.uint8 else kind, device)

    def _of(self, h: Tensor) -> Tensor:
        gate, up = h.chunk(2, dim=1)
        return self.function(gate) * up

    def forward(self, h: Tensor, data: Tensor, scales: Tensor) -> Tensor:
        """Stores h into data and scales; returns f(gate) * up."""
        for into, one in zip((data, scales), self.kernels.pack(h, data.dtype), strict=True):
            into.copy_(one)
        return self._of(h)

    def backward(self, grad: Tensor, stored: Stored, index: Tensor) -> Tensor:
        """As `Gelu.backward`; of both, side by side."""
        with torch.enable_grad():
            h = self.kernels.unpack(*stored, index, None, None, None, grad.dtype).detach().requires_grad_()
            (slope,) = torch.autograd.grad(self._of(h), h, grad)
        return slope

    def rows(self, stored: Stored, chosen: Choice, dtype: torch.dtype) -> Tensor:
        """As `Gelu.rows`."""
        x = self._of(self.kernels.unpack(*stored, chosen.index, None, None, None, dtype))
        return x if chosen.weight is None else x * chosen.weight.to(dtype).unsqueeze(1)


def activation_for(
    function: nn.Module | None, kernels, gated: bool = False
) -> Gelu | OtherActivation | GatedActivation:
    """Returns what stores, applies and differentiates an activation function, or one with a gate behind it."""
    assert function is not None
    if gated:
        return GatedActivation(function, kernels)
    return Gelu(kernels) if type(function) is GELUActivation else OtherActivation(function)


class InnerDropout:
    """Dropout of what the last linear reads, the same in both passes.

    Args:
        call: of the block.
        width: of what it reads.
        device: where that is.
    """

    def __init__(self, call: Call, width: int, device: torch.device) -> None:
        self.p, rows = call.inner_p, call.shape[0] * call.shape[1]
        self.kept = keep_mask((rows, width), self.p, call.seed_of(INNER), device) if self.p else None

    def __call__(self, x: Tensor, rows: Tensor | slice | None) -> Tensor:
        """Returns x, or a gradient to it, of these of the block's rows (None: all) after the dropout."""
        return x if self.kept is None else x * gather(self.kept, rows) * (1 / (1 - self.p))


def pieces(count: int) -> list[slice]:
    """Returns slices of CHUNK that cover range(count)."""
    return [slice(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]


def chosen_in(chosen: Choice, live: Tensor | None, parts: list[slice]) -> list[tuple[Tensor | None, Tensor | None]]:
    """Returns for each piece of the live rows: the positions in it of the chosen rows, and their factors.

    Positions None: every row of the piece. The chosen rows are live and ascending, and so are the live ones.
    """
    index, weight = chosen.index, chosen.weight
    if index is None:
        return [(None, None)] * len(parts)
    positions = index if live is None else torch.searchsorted(live, index)
    edges = torch.tensor([part.start for part in parts], device=positions.device)
    starts = [*torch.searchsorted(positions, edges).tolist(), len(positions)]
    ranges = [slice(*pair) for pair in pairwise(starts)]
    return [
        (positions[some] - part.start, None if weight is None else weight[some])
        for part, some in zip(parts, ranges, strict=True)
    ]


class FeedForwardBlock(torch.autograd.Function):
    """See the module. Returns y (batch, length, width) and its normalised rows as stored: data, scales."""

    @staticmethod
    def forward(ctx, x, data, scales, x_gamma, x_beta, gamma, beta, output_gamma, gates, _bias, call, *others):
        tensors = others[len(NO_POSITIONS) :]
        compute = compute_dtype(x)
        kernels, kind = kernels_for(call.settings.kernels, x, compute), call.storage.dtype("pre_activation", compute)
        *into, back = unpack_linears(tensors, call.layouts)
        first, last = FusedLinear(into, compute), FusedLinear([back], compute)
        activation = activation_for(call.activation, kernels, gated=call.gated)
        norms = {"gamma": gamma, "beta": beta, "output_gamma": output_gamma}
        around = norm_around(call, kernels=kernels, compute=compute, **norms)
        with without_autocast(x):
            residual = x.reshape(-1, x.shape[-1]).contiguous()
            entered = around.enter(residual)
            out = residual.new_empty(residual.shape, dtype=compute)
            pre_activation = activation.allocate((len(residual), first.outputs), kind, x.device)
            factors = None if gates is None else gates.to(compute)
            dropped = InnerDropout(call, last.weight.shape[1], x.device)
            for part in pieces(len(residual)):
                h = first.forward(entered[part].to(compute))
                a = dropped(activation.forward(h, pre_activation[0][part], pre_activation[1][part]), part)
                last.forward(a if factors is None else a * factors, out=out[part])
            y = around.leave(out, residual)
        kept = (*pre_activation, *around.kept)
        ctx.save_for_backward(data, scales, x_gamma, x_beta, gamma, beta, output_gamma, gates, *kept, *tensors)
        ctx.call, ctx.compute = call, compute
        ctx.mark_non_differentiable(*(one for one in around.output if one is not None))
        ctx.set_materialize_grads(False)  # or zeros would be made for the two
        needs = NeedsGrad.of(ctx.needs_input_grad, call.layouts)
        # the activation function's input and output, and with a gate the other factor and the product
        sides = (3 if call.gated else 1) + needs.last_input
        call.count_saved(x, kept, compute, values=sides * last.weight.shape[1], reads=needs.first_input)
        # not a view: autograd forbids to change a view of a custom function in place
        return torch.ops.aten._unsafe_view(y, x.shape), *around.output

    @staticmethod
    def backward(ctx, dy, _data, _scales):
        refuse_double_backward()
        if dy is None:
            return (None,) * len(ctx.needs_input_grad)
        saved = ctx.saved_tensors
        *packed, gamma, beta, output_gamma, gates = saved[:8]
        pre_activation = saved[8:10]
        call, compute, settings = ctx.call, ctx.compute, ctx.call.settings
        needs, kernels = NeedsGrad.of(ctx.needs_input_grad, call.layouts), kernels_for(settings.kernels, dy, compute)
        end = 10 + call.norm.num_kept
        of_norms = {"gamma": gamma, "beta": beta, "output_gamma": output_gamma, "kept": saved[10:end]}
        around = norm_around(call, kernels=kernels, compute=compute, **of_norms)
        *into, back = unpack_linears(saved[end:], call.layouts)
        first, last = FusedLinear(into, compute), FusedLinear([back], compute)
        activation = activation_for(call.activation, kernels, gated=call.gated)
        stored = around.input(PackedInput(*packed))
        with without_autocast(dy):
            rows = dy.reshape(-1, dy.shape[-1]).contiguous()
            d_out, norms, total = around.open(rows)
            learns, chosen = needs.first_input or needs.last, ALL
            if learns:
                chosen = choose_rows(norms, call.budget(), rule=settings.rows, seed=call.seed_of(ROWS_OUT))
            live = live_rows(norms, settings.skip_zero_rows)
            every = torch.arange(len(rows), device=dy.device) if live is None else live
            first_grads, last_grads = Gradients(first, needs.into), Gradients(last, needs.back)
            factors = None if gates is None else gates.to(compute)
            d_gates = torch.zeros_like(gates) if needs.gates else None
            parts, dropped = pieces(len(every)), InnerDropout(call, last.weight.shape[1], dy.device)
            for part, (positions, weight) in zip(parts, chosen_in(chosen, live, parts), strict=True):
                tokens = every[part]
                here = part if live is None else tokens
                some = Choice(gather(tokens, positions), weight)
                g = gather(d_out, here)
                if needs.last:
                    a = dropped(activation.rows(pre_activation, some, compute), some.index)
                    last_grads.add(gather(g, positions), a if factors is None else a * factors)
                d_a = dropped(last.input_grad(g, None), here)
                if d_gates is not None:
                    a = activation.rows(pre_activation, Choice(tokens, None), compute)
                    d_gates += (d_a * a).sum(0, dtype=d_gates.dtype)
                if factors is not None:
                    d_a = d_a * factors
                d_h = activation.backward(d_a, pre_activation, tokens)
                first_grads.add_biases(d_h)
                if needs.first_input:
                    first_grads.add(gather(d_h, positions), stored.unpack(kernels, compute, some))
                if ctx.needs_input_grad[0] or call.norm.pre_norm:
                    first.add_input_grad(total, here, d_h)
            last_grads.add_biases(d_out)
            d_x = around.close(rows, total)
            if learns:
                call.stats.add(call.real, chosen.count(call.real))
        return (
            d_x.view_as(dy), *NO_GRADS, around.d_gamma, around.d_beta, around.d_output_gamma, d_gates, None, None,
            *NO_POSITIONS, *first_grads.totals, *last_grads.totals,
        )  # fmt: skip
