"""late_triton.py: launched on a GPU under the names that plain.py has; see there for what each function does.

On a CPU they run in Triton's interpreter alone, with TRITON_INTERPRET=1 in the environment: that is for tests. They
have been run in the interpreter and compiled for GPUs, but never timed on one.
"""

import torch
import triton
from torch import Tensor
from triton.errors import TritonError as TritonError

from keepfrac.sparse.kernels import late_triton as code
from keepfrac.sparse.kernels import plain

PIECE = 1024  # features of a row that one program of an elementwise kernel works on
ROWS_OF_SUMS = 8  # rows whose share of d_gamma and d_beta one program adds up
SCORES = 4096  # attention scores that one program works on


def interpreted() -> bool:
    """Returns whether the kernels run in Triton's interpreter, on a CPU."""
    return not isinstance(code.pack, triton.JITFunction)


def _launch(kernel, grid: tuple[int, ...], *values, elements: int, **constants) -> None:
    """Runs programs of about `elements` numbers each, on the device of the first tensor."""
    if 0 in grid:
        return
    for value in values:
        assert not isinstance(value, Tensor) or value.is_contiguous(), "the kernels walk over contiguous rows"
    with torch.cuda.device_of(values[0]):  # Triton launches on the current device, whatever the tensors' own
        kernel[grid](*values, **constants, num_warps=max(1, min(8, elements // 256)))


def _power(count: int) -> int:
    return 1 << max(0, count - 1).bit_length()


def _grouping(kind: torch.dtype, width: int) -> dict[str, int]:
    """How a row is cut into groups that share a scale; their number is rounded up to a power of 2."""
    group = plain.GROUPS.get(kind, 64)
    return {"GROUPS": _power(-(-width // group)), "GROUP": group}


def _by_rows(kernel, programs: int, kind: torch.dtype, *values, width: int, **more) -> None:
    """Runs a kernel whose programs hold a whole row."""
    cut = _grouping(kind, width)
    _launch(kernel, (programs,), *values, width=width, elements=cut["GROUPS"] * cut["GROUP"], **more, **cut)


def _by_pieces(kernel, rows: int, kind: torch.dtype, *values, width: int, **more) -> None:
    """Runs a kernel whose programs hold at most PIECE features of a row."""
    cut = _grouping(kind, width)
    cut["GROUPS"] = min(cut["GROUPS"], PIECE // cut["GROUP"])
    elements = cut["GROUPS"] * cut["GROUP"]
    _launch(kernel, (rows, -(-width // elements)), *values, width=width, elements=elements, **more, **cut)


def _noise(p: float, seed: int) -> dict:
    """What draws a mask: the seed's halves and the threshold as signed 32 bits, the factor of what is kept."""
    halves = {"first": plain.signed(seed), "second": plain.signed(seed >> 32)}
    return {**halves, "threshold": plain.signed(int(p * (1 << 32))), "scale": 1 / (1 - p), "DROP": p > 0}


def pack(x: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """As in plain.py."""
    if kind == x.dtype:
        return x, x.new_empty(0)
    data, scales = plain.empty(x.shape[0], x.shape[1], kind, x.device)
    _by_pieces(code.pack, len(x), kind, x, data, scales, None, width=x.shape[1])
    return data, scales


def _rows(data, scales, index, gamma, beta, weight, dtype: torch.dtype, gelu: bool) -> Tensor:
    count, width = len(data) if index is None else len(index), data.shape[1]
    out = torch.empty(count, width, dtype=dtype, device=data.device)
    values = (data, scales, index, gamma, beta, weight, out)
    _by_pieces(code.unpack, count, data.dtype, *values, width=width, GELU=gelu)
    return out


def unpack(
    data: Tensor,
    scales: Tensor,
    index: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    weight: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """As in plain.py."""
    if data.dtype == dtype and index is None and gamma is None and weight is None:
        return data
    return _rows(data, scales, index, gamma, beta, weight, dtype, gelu=False)


def add_norm(
    h: Tensor, residual: Tensor, gamma: Tensor, beta: Tensor, eps: float, p: float, seed: int, kind: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As in plain.py."""
    rows, width = h.shape
    y, rstd = torch.empty_like(residual), torch.empty(rows, device=h.device)
    data, scales = plain.empty(rows, width, kind, h.device)
    values = (h, residual, gamma, beta, y, data, scales, rstd)
    _by_rows(code.add_norm, rows, kind, *values, width=width, eps=float(eps), **_noise(p, seed))
    return y, data, scales, rstd


def add_norm_grad(
    dy: Tensor, data: Tensor, scales: Tensor, rstd: Tensor, gamma: Tensor, p: float, seed: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As in plain.py; the sums over rows are taken in the same order every time."""
    rows, width = dy.shape
    programs = -(-rows // ROWS_OF_SUMS)
    d_residual, d_h = torch.empty_like(dy), torch.empty_like(dy, dtype=dtype)
    norms, sums = (torch.empty(*shape, device=dy.device) for shape in ((rows,), (programs, 2, width)))
    values = (dy, data, scales, rstd, gamma, d_residual, d_h, norms, sums)
    sizes = {"rows": rows, "width": width, "ROWS": ROWS_OF_SUMS}
    _by_rows(code.add_norm_grad, programs, data.dtype, *values, **sizes, **_noise(p, seed))
    d_gamma, d_beta = sums.sum(0).unbind(0)
    return d_residual, d_h, d_gamma, d_beta, norms


def gelu_(h: Tensor, data: Tensor, scales: Tensor) -> Tensor:
    """As in plain.py."""
    _by_pieces(code.pack, len(h), data.dtype, h, data, scales, h, width=h.shape[1])
    return h


def gelu_grad_(grad: Tensor, data: Tensor, scales: Tensor, index: Tensor | None) -> Tensor:
    """As in plain.py."""
    _by_pieces(code.gelu_grad, len(grad), data.dtype, grad, data, scales, index, width=grad.shape[1])
    return grad


def gelu_rows(data: Tensor, scales: Tensor, index: Tensor | None, weight: Tensor | None, dtype: torch.dtype) -> Tensor:
    """As in plain.py."""
    return _rows(data, scales, index, None, None, weight, dtype, gelu=True)


def _softmax(scores: Tensor, grad: Tensor | None, scale: float, bias: Tensor | None, p: float, seed: int) -> None:
    keys = scores.shape[-1]
    rows, whole = scores.numel() // keys, _power(keys)
    each = max(1, min(_power(rows), SCORES // whole))
    values = (scores, grad, None if bias is None else bias.contiguous())
    sizes = {"rows": rows, "keys": keys, "factor": float(scale), "ROWS": each, "KEYS": whole}
    _launch(code.softmax, (-(-rows // each),), *values, **sizes, elements=each * whole, **_noise(p, seed))


def softmax_(scores: Tensor, scale: float, bias: Tensor | None, p: float, seed: int) -> Tensor:
    """As in plain.py."""
    _softmax(scores, None, scale, bias, p, seed)
    return scores


def softmax_grad_(
    scores: Tensor, grad: Tensor, scale: float, bias: Tensor | None, p: float, seed: int
) -> tuple[Tensor, Tensor]:
    """As in plain.py."""
    _softmax(scores, grad, scale, bias, p, seed)
    return scores, grad
