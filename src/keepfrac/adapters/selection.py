"""Where S2 stands: N positions of a weight, chosen once, always exactly N."""

from __future__ import annotations

import torch
from torch import Tensor

from keepfrac.errors import UserError
from keepfrac.prune.masks import top_mask

SELECTORS = ("grebsmo", "magnitude", "random", "gradient", "svd_residual")
LARGEST = 2**31 - 1
ITERATIONS, SWEEPS, GROWTH, THRESHOLD = 100, 2, 5, 0.01  # of the DSEE code's greedy decomposition


def check_selector(selector: str) -> None:
    """Refuses a selector that is not known.

    Raises:
        UserError: names those that are.
    """
    if selector not in SELECTORS:
        raise UserError(f"method.selector={selector}: must be one of {', '.join(SELECTORS)}")


@torch.no_grad()
def select_positions(
    weight: Tensor, count: int, selector: str, rank: int, generator: torch.Generator, squares: Tensor | None = None
) -> Tensor:
    """Chooses S2's positions in a weight.

    Args:
        weight: (outputs, inputs), pre-trained.
        count: N, 0 to outputs * inputs.
        selector: `grebsmo`: the largest entries of what a greedy low-rank and sparse decomposition leaves (DSEE);
            `svd_residual`: of what the best approximation of that rank leaves; `magnitude`: of the weight;
            `gradient`: of the loss's squared gradient; `random`.
        rank: of the approximation of grebsmo and svd_residual, >= 1.
        generator: a CPU generator for what is drawn.
        squares: (outputs, inputs) summed squares of the gradient, for `gradient`.

    Returns:
        (count,) flat positions, int32, ascending.

    Raises:
        UserError: an unknown selector, or more positions than the weight has.
    """
    check_selector(selector)
    if not 0 <= count <= weight.numel() or weight.numel() > LARGEST:
        raise UserError(
            f"{count} sparse positions in a {weight.shape[0]} x {weight.shape[1]} weight: it has {weight.numel()}"
            f" (at most {LARGEST} can be numbered)"
        )
    if selector == "random":
        return torch.randperm(weight.numel(), generator=generator)[:count].sort().values.int().to(weight.device)
    w = weight.float()
    if selector == "grebsmo":
        score = residual(w, rank, generator)
    elif selector == "svd_residual":
        u, s, vt = torch.linalg.svd(w, full_matrices=False)
        score = w - (u[:, :rank] * s[:rank]) @ vt[:rank]
    elif selector == "gradient":
        assert squares is not None
        score = squares
    else:
        score = w
    return torch.nonzero(top_mask(score.abs(), count).flatten()).flatten().int()


def residual(w: Tensor, rank: int, generator: torch.Generator) -> Tensor:
    """Returns W - U V after the greedy decomposition W = U V + S + E (GreBsmo, Zhou & Tao 2013), as DSEE runs it.

    Each round solves for U, V and S twice (U = qr((W - S) V^T).Q, V = U^T (W - S), S = W - U V where that is at least
    0.01), then V grows by the 5 leading directions of what is left. DSEE's text says rank r; its code lets the
    rank grow to 1 + 99 * 5 = 496 instead. Here it grows to `rank` and stays.
    """
    v = torch.randn(1, w.shape[1], generator=generator).to(w.device)
    rank = min(rank, *w.shape)
    for _ in range(ITERATIONS):
        sparse = torch.zeros_like(w)
        for _ in range(SWEEPS):
            u = torch.linalg.qr((w - sparse) @ v.t()).Q
            v = u.t() @ (w - sparse)
            left = w - u @ v
            sparse = left.masked_fill(left.abs() < THRESHOLD, 0.0)
        if len(v) == rank:
            break
        more = torch.linalg.qr(left - sparse).R[: min(GROWTH, rank - len(v))]
        v = torch.cat([v, more])
    return left
