"""A linear as two thin factors: y = Q diag(z) P x + b, with W = Q diag(z) P.

Thin singular value decomposition, never the full one: a full one adds directions whose singular value is 0, which
inflate the count (233,570,304 for BERT-base's 84,934,656 weights) and can be "pruned" for nothing.
Factors cost r (m + n) against m n, so they pay only below the break-even rank r* = m n / (m + n); at or above it
`models.slicing` multiplies them into one dense weight again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from keepfrac.errors import UserError


class FactorizedLinear(nn.Module):
    """y = q(p(x)); `p` (inputs -> rank) has no bias, `q` (rank -> outputs) has the linear's bias."""

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool = True) -> None:
        super().__init__()
        if not rank >= 1:
            raise UserError(f"a rank of {rank}: it must be at least 1")
        self.in_features, self.out_features = in_features, out_features
        self.p = nn.Linear(in_features, rank, bias=False)
        self.q = nn.Linear(rank, out_features, bias=bias)

    @property
    def rank(self) -> int:
        return self.p.out_features

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        return self.q(self.p(x))


def break_even_rank(in_features: int, out_features: int) -> int:
    """Returns the largest rank whose factors are not larger than the dense matrix: floor(m n / (m + n))."""
    return in_features * out_features // (in_features + out_features)


def dense_weight(linear: nn.Module) -> Tensor:
    """Returns the (outputs, inputs) weight of a linear, whole or in two factors."""
    p, q = getattr(linear, "p", None), getattr(linear, "q", None)
    if isinstance(p, nn.Linear) and isinstance(q, nn.Linear):
        return q.weight @ p.weight
    return linear.get_parameter("weight")


def decompose(weight: Tensor, rank: int, moments: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the best rank-r factors of a weight W (outputs, inputs), and its singular values.

    Plain: W = U S V^T, so P = V^T and Q = U S minimise |W - Q P| (Eckart-Young). Whitened: with the inputs' second
    moments M = E[x x^T] = C C^T, the decomposition of W C minimises the error of the *outputs*, E|W x - Q P x|^2
    (Wang et al. 2024, SVD-LLM, section 3.1); P = V^T C^-1.

    Args:
        weight: (outputs, inputs).
        rank: 1 to min(outputs, inputs).
        moments: (inputs, inputs), or None.

    Returns:
        P (rank, inputs), Q (outputs, rank), singular values (rank,), descending; in float64.
    """
    if not 1 <= rank <= min(weight.shape):
        raise UserError(f"rank {rank} of a {tuple(weight.shape)} weight: it must be 1 to {min(weight.shape)}")
    w = weight.detach().double()
    root = None if moments is None else _cholesky(moments.double())
    u, s, vt = torch.linalg.svd(w if root is None else w @ root, full_matrices=False)
    p = vt[:rank]
    if root is not None:
        p = torch.linalg.solve_triangular(root, p, upper=False, left=False)
    return p, u[:, :rank] * s[:rank], s[:rank]


def factorize(linear: nn.Linear, rank: int, moments: Tensor | None = None) -> FactorizedLinear:
    """Returns a linear as two factors, its bias on the second; exact at full rank (up to rounding)."""
    p, q, _ = decompose(linear.weight, rank, moments)
    twin = FactorizedLinear(linear.in_features, linear.out_features, rank, linear.bias is not None)
    twin = twin.to(linear.weight.device, linear.weight.dtype)
    with torch.no_grad():
        twin.p.weight.copy_(p)
        twin.q.weight.copy_(q)
        if linear.bias is not None:
            twin.q.bias.copy_(linear.bias)
    return twin


def factorize_(
    net: nn.Module, paths: Sequence[str], rank: int | None, moments: dict[str, Tensor] | None = None
) -> dict[str, int]:
    """Replaces linears of a model by two factors each, in place.

    Args:
        net: the model.
        paths: module paths of the linears.
        rank: for all of them, or None for each one's break-even rank, above which gates are worthless.
        moments: path -> second moments of its inputs (`input_moments`), or None for the plain decomposition.

    Returns:
        Path -> rank.

    Raises:
        UserError: a path is no plain linear, or none was named.
    """
    if not paths:
        raise UserError("no linear to factorise: the pattern matches nothing")
    ranks: dict[str, int] = {}
    for path in paths:
        linear = net.get_submodule(path)
        if not isinstance(linear, nn.Linear):
            raise UserError(f"{path} is a {type(linear).__name__}: only a dense linear can be factorised")
        full = min(linear.in_features, linear.out_features)
        ranks[path] = min(full, rank or break_even_rank(linear.in_features, linear.out_features))
        parent, _, leaf = path.rpartition(".")
        twin = factorize(linear, ranks[path], None if moments is None else moments[path])
        setattr(net.get_submodule(parent), leaf, twin)
    return ranks


@torch.no_grad()
def input_moments(
    net: nn.Module, paths: Sequence[str], batches: Iterable, run: Callable[[object], object]
) -> dict[str, Tensor]:
    """Returns E[x x^T] of the inputs of linears over *training* batches, in float64 on the CPU.

    Args:
        net: the model; put into eval mode by the caller.
        paths: the linears.
        batches: training batches.
        run: makes one forward of the model from a batch, e.g. `lambda batch: net(**task.inputs(batch))`.

    Returns:
        Path -> (inputs, inputs). Padding positions count like others.
    """
    sums: dict[str, Tensor] = {}
    rows: dict[str, int] = dict.fromkeys(paths, 0)

    def collect(path: str) -> Callable:
        def hook(module: nn.Module, args: tuple) -> None:
            x = args[0].reshape(-1, args[0].shape[-1]).float()
            sums[path] = sums.get(path, 0) + (x.T @ x).double().cpu()
            rows[path] += len(x)

        return hook

    handles = [net.get_submodule(path).register_forward_pre_hook(collect(path)) for path in paths]
    try:
        for batch in batches:
            run(batch)
    finally:
        for handle in handles:
            handle.remove()
    if not sums:
        raise UserError("no batch to measure the activations on")
    return {path: total / rows[path] for path, total in sums.items()}


def _cholesky(moments: Tensor) -> Tensor:
    """Lower root of the moments, with just enough of the identity added where they are singular."""
    eye = torch.eye(len(moments), dtype=moments.dtype, device=moments.device)
    for damping in (0.0, 1e-8, 1e-6, 1e-4, 1e-2):
        root, failed = torch.linalg.cholesky_ex(moments + damping * moments.diagonal().mean() * eye)
        if not failed and root.diagonal().min() > 1e-7 * root.diagonal().max():
            return root
    raise UserError("the activations' second moments are singular: measure them on more batches")
