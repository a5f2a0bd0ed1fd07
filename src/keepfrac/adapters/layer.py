"""A frozen linear with a trained update, low-rank plus sparse: y = W x + b + s (U V + S2) x, with s = alpha / r.

U is (outputs, r) and begins at 0, V is (r, inputs); S2 is N positions (int32, into the flat (outputs, inputs) matrix)
and N trained values, never a matrix: its gradient and its moments have N entries. The forward pass saves x, V x and
parameters; nothing of the size of W is made in the backward pass, and none of W's gradient.

    W's layout     nn.Linear, or GPT-2's Conv1D, which holds W transposed
    fused linears  an update may own a slice of the outputs (query in c_attn: [0, d), value: [2d, 3d))
    constrained    y = (S1 o (W + s (U V + S2))) x + b: the zeros of a mask S1 hold while training. This one makes
                   matrices of the size of W in both passes

Source: Chen et al. 2023 (DSEE), section 3, which stores S2 as a dense matrix and a mask; Hu et al. 2022 (LoRA).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from keepfrac.adapters.function import Adapted
from keepfrac.errors import UserError
from keepfrac.tensors.layouts import is_transposed

INIT_STD = 0.02


class Update(nn.Module):
    """s (U V + S2), for the outputs [start, start + size) of a linear.

    Args:
        outputs: size, >= 1.
        inputs: of the linear, >= 1.
        rank: 1 to min(outputs, inputs).
        scale: s = alpha / r.
        positions: (N,) flat positions of S2 in (outputs, inputs), distinct; None: there is no S2.
        start: the first output that is changed.
    """

    positions: Tensor | None

    def __init__(
        self, outputs: int, inputs: int, rank: int, scale: float, positions: Tensor | None = None, start: int = 0
    ) -> None:
        super().__init__()
        if not 1 <= rank <= min(outputs, inputs):
            raise UserError(f"rank {rank} for a {outputs} x {inputs} weight: it must be 1 to {min(outputs, inputs)}")
        self.u = nn.Parameter(torch.zeros(outputs, rank))
        self.v = nn.Parameter(torch.zeros(rank, inputs))
        sparse = positions is not None and len(positions) > 0
        self.values = nn.Parameter(torch.zeros(len(positions))) if sparse else None  # type: ignore[arg-type]
        self.register_buffer("positions", positions.int() if sparse else None)  # type: ignore[union-attr]
        # saved with the tensors, so that a file of weights has all that is needed to load them
        self.register_buffer("layout", torch.tensor([scale, start], dtype=torch.float64))
        self.scale, self.start = float(scale), int(start)

    @property
    def outputs(self) -> int:
        return len(self.u)

    @property
    def rank(self) -> int:
        return len(self.v)

    @property
    def rows(self) -> slice:
        """The outputs of the linear that are changed."""
        return slice(self.start, self.start + self.outputs)

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        """Draws V, from a CPU generator."""
        self.v.copy_(torch.empty(self.v.shape, device="cpu").normal_(std=INIT_STD, generator=generator))

    def delta(self) -> Tensor:
        """Returns (outputs, inputs) s (U V + S2), with a gradient; a whole matrix."""
        product = self.u @ self.v
        if self.values is not None and self.positions is not None:
            product = product.flatten().index_add(0, self.positions, self.values).view_as(product)
        return self.scale * product


class AdaptedLinear(nn.Module):
    """A linear and its updates. Its parameters keep the names `weight` and `bias`, so masks and checkpoints fit.

    Args:
        base: nn.Linear or Conv1D; its parameters are shared, not copied.
        updates: by role.
        dropout: of the updates' input, in [0, 1).
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    mask: Tensor | None
    in_features: int
    out_features: int

    def __init__(self, base: nn.Module, updates: Mapping[str, Update], dropout: float = 0.0) -> None:
        super().__init__()
        self.weight, self.bias = base.get_parameter("weight"), base._parameters["bias"]
        self.transposed = is_transposed(base)
        self.out_features, self.in_features = self.oriented(self.weight).shape
        self.updates = nn.ModuleDict(updates)
        self.updates.to(self.weight.device)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("mask", None)
        self.constrained = False
        self._base = (base,)  # in a tuple: its parameters are listed once

    def parts(self) -> list[Update]:
        """Returns the updates."""
        return [update for update in self.updates.values() if isinstance(update, Update)]

    def oriented(self, matrix: Tensor) -> Tensor:
        """Returns an (outputs, inputs) matrix in the layout of `weight`, or the other way round."""
        return matrix.t() if self.transposed else matrix

    def delta(self) -> Tensor:
        """Returns the whole update in the layout of `weight`, with a gradient."""
        padded = [
            F.pad(part.delta(), (0, 0, part.start, self.out_features - part.start - part.outputs))
            for part in self.parts()
        ]
        return self.oriented(torch.stack(padded).sum(0) if len(padded) > 1 else padded[0])

    def reserve_mask(self) -> None:
        """Makes room for a mask, so that checkpoints before and after `constrain` have the same entries."""
        self.mask = torch.ones_like(self.weight, dtype=torch.bool)

    def constrain(self, mask: Tensor | None = None) -> None:
        """Applies a mask, of the shape of `weight`, to W and its update together in each forward pass.

        Args:
            mask: new content of the reserved mask; None: it has its content (again, from a checkpoint).
        """
        assert self.mask is not None, "reserve_mask comes first"
        if mask is not None:
            self.mask.copy_(mask)
        self.constrained = True

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        if self.constrained:
            return F.linear(x, self.oriented(self.constrained_weight()), self.bias)
        dropped = self.dropout(x) if self.training and self.dropout.p else None
        parts = self.parts()
        layout = (self.transposed, tuple((part.rows, part.scale) for part in parts))
        tensors = [t for part in parts for t in (part.u, part.v, part.values, part.positions)]
        return Adapted.apply(x, dropped, self.weight, self.bias, layout, *tensors)

    def constrained_weight(self) -> Tensor:
        """Returns S1 o (W + delta), in the layout of `weight`, with a gradient."""
        assert self.mask is not None
        # in bf16 the sum would lose what is small in delta
        with torch.autocast(self.weight.device.type, enabled=False):
            return (self.weight + self.delta()) * self.mask

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


def scale_of(alpha: float, rank: int) -> float:
    """Returns the scale s = alpha / r.

    Raises:
        UserError: the rank is not at least 1, or alpha is not above 0.
    """
    if not rank >= 1 or not alpha > 0 or not math.isfinite(alpha):
        raise UserError(f"rank {rank} and alpha {alpha}: the rank must be at least 1 and alpha above 0")
    return alpha / rank
