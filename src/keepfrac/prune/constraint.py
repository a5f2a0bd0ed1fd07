"""Holding an expected cost at its target while the model trains.

The violation is v = E[cost] / cost(dense) - target, both shares of the dense model, so that v > 0 means too large.
(Papers write the sparsity s - t = -v: only the sign of lambda_1 differs.)

    AugmentedLagrangian   lambda_1 v + lambda_2 v^2, ascent on both multipliers (Wang et al. 2020, eq. (6))
    ProportionalIntegral  lambda_1 is a proportional-integral controller of v, lambda_2 is constant

Both are fp32 modules with `loss(violation)`, `after_step(violation)` and `values()`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from keepfrac.errors import UserError


class AugmentedLagrangian(nn.Module):
    """lambda_1 v + lambda_2 v^2 with both multipliers from zero, as published.

    Put `parameters()` into the optimizer with `maximize=True`, no weight decay and no clipping: the gradient of
    lambda_1 is v, that of lambda_2 is v^2 >= 0, so lambda_2 only grows and the penalty stiffens.

    Gates that are wide open hardly move, so lambda_1 piles up while the target falls; Adam takes it down as slowly as
    it rose, whatever the violation, and the share meanwhile falls far below its target. `anti_windup` ends that as a
    Clegg integrator does (Clegg 1958): lambda_1 is reset to 0 when v falls below 0.

    Args:
        anti_windup: whether lambda_1 is reset; false: as published.
    """

    def __init__(self, anti_windup: bool = False) -> None:
        super().__init__()
        self.anti_windup = anti_windup
        self.lambda1 = nn.Parameter(torch.zeros((), dtype=torch.float32))
        self.lambda2 = nn.Parameter(torch.zeros((), dtype=torch.float32))

    def loss(self, violation: Tensor) -> Tensor:
        """Returns the scalar term to add to the loss; may be negative (lambda_1 v is)."""
        v = violation.float()
        return self.lambda1 * v + self.lambda2 * v.square()

    @torch.no_grad()
    def after_step(self, violation: float) -> list[nn.Parameter]:
        """Takes the violation of the step just made; the optimizer has moved the multipliers.

        Returns:
            The multipliers that were reset: the optimizer's state of them is to be cleared.
        """
        if not self.anti_windup or not violation < 0 < self.lambda1.item():
            return []
        self.lambda1.zero_()
        return [self.lambda1]

    def values(self) -> dict[str, float]:
        return {"lambda1": self.lambda1.item(), "lambda2": self.lambda2.item()}


class ProportionalIntegral(nn.Module):
    """lambda_1 = k_p v + k_i sum(v), lambda_2 constant; no gradient moves them.

    Integration stops while lambda_1 is outside [-limit, limit] and v would push it further (anti-windup), so a
    target that is out of reach for a while does not pay for it with a long overshoot.

    Args:
        proportional: k_p, >= 0.
        integral: k_i per step, >= 0.
        quadratic: the constant lambda_2, >= 0.
        limit: bound of |lambda_1|, > 0.
    """

    sum: Tensor
    last: Tensor

    def __init__(self, proportional: float, integral: float, quadratic: float, limit: float) -> None:
        super().__init__()
        if min(proportional, integral, quadratic) < 0 or limit <= 0:
            raise UserError(
                f"the controller's gains are {proportional}, {integral}, {quadratic} (each >= 0),"
                f" its limit {limit} (> 0)"
            )
        self.proportional, self.integral, self.quadratic, self.limit = (proportional, integral, quadratic, limit)
        self.register_buffer("sum", torch.zeros((), dtype=torch.float64))
        self.register_buffer("last", torch.zeros((), dtype=torch.float64))

    def lambda1(self) -> float:
        wanted = self.proportional * self.last.item() + self.integral * self.sum.item()
        return max(-self.limit, min(self.limit, wanted))

    def loss(self, violation: Tensor) -> Tensor:
        v = violation.float()
        return self.lambda1() * v + self.quadratic * v.square()

    def after_step(self, violation: float) -> list[nn.Parameter]:
        """Takes the violation of the step just made; no optimizer has a part in it, so it returns nothing."""
        wanted = self.proportional * violation + self.integral * self.sum.item()
        if abs(wanted) < self.limit or wanted * violation < 0:
            self.sum += violation
        self.last.fill_(violation)
        return []

    def values(self) -> dict[str, float]:
        return {"lambda1": self.lambda1(), "lambda2": self.quadratic}
