"""The hard concrete distribution of Louizos et al. 2018: a gate in [0, 1] that is exactly 0 or 1 at times.

    u ~ U(eps, 1 - eps);  s = sigmoid((log u - log(1 - u) + a) / beta);  z = clip(s (zeta - gamma) + gamma, 0, 1)

a = log alpha is the only parameter. gamma = -0.1 and zeta = 1.1 everywhere in the literature; beta is 2/3 in most of
it and 1 in FLOP. Everything is computed in fp32, whatever the model runs in.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

GAMMA, ZETA, EPSILON = -0.1, 1.1, 1e-6
_LOG_RATIO = math.log(-GAMMA / ZETA)


def sample(log_alpha: Tensor, uniform: Tensor, beta: float) -> Tensor:
    """Returns a training sample z of each gate, eq. (10)-(11) of Louizos et al. 2018; differentiable in log_alpha.

    Args:
        log_alpha: a, any shape.
        uniform: noise in (0, 1), the same shape.
        beta: temperature, > 0.
    """
    u = uniform.float().clamp(EPSILON, 1 - EPSILON)
    s = torch.sigmoid((torch.logit(u) + log_alpha.float()) / beta)
    return (s * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def open_probability(log_alpha: Tensor, beta: float) -> Tensor:
    """Returns P(z > 0) = sigmoid(a - beta log(-gamma / zeta)), eq. (12) of Louizos et al. 2018."""
    return torch.sigmoid(log_alpha.float() - beta * _LOG_RATIO)


def deterministic(log_alpha: Tensor) -> Tensor:
    """Returns the gate in evaluation, clip(sigmoid(a) (zeta - gamma) + gamma, 0, 1), eq. (13) of Louizos et al."""
    return (torch.sigmoid(log_alpha.float()) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def log_alpha_of(probability: float, beta: float) -> float:
    """Returns the a at which a gate is open with this probability: logit(p) + beta log(-gamma / zeta).

    Raises:
        ValueError: the probability is not inside (0, 1).
    """
    if not 0 < probability < 1:
        raise ValueError(f"a gate's open probability is {probability}: it must be inside (0, 1)")
    return math.log(probability / (1 - probability)) + beta * _LOG_RATIO
