"""The elementwise work of `late` in plain PyTorch: the specification of late.cpp, and what runs without a compiler.

An activation is stored as `(data, scales)`. The dtype of `data` is the format:

    int8    symmetric 8 bits:  value = code * scale;         scales (rows, groups of 32), bfloat16
    uint8   asymmetric 8 bits: value = code * step + low;    scales (rows, groups of 64, 2), bfloat16; low >= -4
    other   the numbers themselves;                          scales is empty

A group is so many neighbouring features of one row: a channel of outliers spoils its own group alone. The last group
of an odd width is shorter. (With groups of 64 for int8 too, the gradient at the bottom of six layers of MiniLM is off
by 1.2 % instead of 1.0 %, for 2 % fewer bytes.) The asymmetric format is for what enters a GELU: below -4 the function
and its slope vanish, so that nothing is lost there. Dropout masks are never stored: they hash (seed, position).
All arrays are 2-D and contiguous; "stream" is the dtype of the residual stream, "compute" that of the matmuls.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

GROUPS = {torch.int8: 32, torch.uint8: 64}  # features that share a scale
_WORD = 1 << 32


def scales_shape(rows: int, width: int, kind: torch.dtype) -> tuple[int, ...]:
    """Returns the shape of the scales of `rows` x `width` numbers stored as `kind`."""
    if kind not in GROUPS:
        return (0,)
    groups = -(-width // GROUPS[kind])
    return (rows, groups) if kind == torch.int8 else (rows, groups, 2)


def empty(rows: int, width: int, kind: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns room for `rows` x `width` numbers stored as `kind`: (data, scales), not filled."""
    data = torch.empty(rows, width, dtype=kind, device=device)
    return data, torch.empty(scales_shape(rows, width, kind), dtype=torch.bfloat16, device=device)


def _grouped(x: Tensor, kind: torch.dtype) -> Tensor:
    """(rows, width) -> (rows, groups, group); a short last group is filled up by repeating the row's last feature."""
    missing = -x.shape[1] % GROUPS[kind]
    if missing:
        x = torch.cat([x, x[:, -1:].expand(-1, missing)], dim=1)
    return x.reshape(x.shape[0], x.shape[1] // GROUPS[kind], GROUPS[kind])


def _write(x: Tensor, data: Tensor, scales: Tensor) -> None:
    """Stores x (rows, width) into `data` and `scales`, in the format of `data`."""
    if data.dtype == torch.int8:
        grouped = _grouped(x, data.dtype)
        # 126, not 127: the scale is rounded to bfloat16 before it divides, and may come out smaller
        # on a CPU 20 times faster than the infinity norm, and below, 5 times faster than aminmax
        top = grouped.abs().amax(-1, keepdim=True).float()
        scale = (top.clamp_min_(1e-12) / 126).bfloat16()
        codes = (grouped * (1 / scale.float())).round_()
    elif data.dtype == torch.uint8:
        grouped = _grouped(x, data.dtype)
        least, top = grouped.amin(-1, keepdim=True), grouped.amax(-1, keepdim=True)
        low, top = least.float().clamp_min(-4).bfloat16(), top.float().clamp_min_(-3.9)
        # `least * 0` carries a -inf, which the clamp has hidden
        step = ((top - low.float()).clamp_min_(1e-6) / 254 + least.float() * 0).bfloat16()
        scale = torch.stack([step, low], dim=-1)
        codes = (grouped - low.float()).mul_(1 / step.float()).add_(0.5).clamp_(0, 255)
    else:
        data.copy_(x)
        return
    # a NaN has no code: it lives on in the scale of its group, whatever its code
    data.copy_(codes.flatten(1)[:, : x.shape[1]])
    scales.copy_(scale.view_as(scales))


def pack(x: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """Stores x (rows, width) as `kind`; returns (data, scales). In its own dtype, x itself is what is stored."""
    if kind == x.dtype:
        return x, x.new_empty(0)
    data, scales = empty(x.shape[0], x.shape[1], kind, x.device)
    _write(x, data, scales)
    return data, scales


def _read(data: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    width = data.shape[1]
    if data.dtype not in GROUPS:
        return data.to(dtype)
    group = GROUPS[data.dtype]
    if width % group:
        data = F.pad(data, (0, -width % group))
    codes = data.view(data.shape[0], data.shape[1] // group, group).to(dtype)
    if data.dtype == torch.int8:
        return codes.mul_(scales.to(dtype).unsqueeze(-1)).flatten(1)[:, :width]
    step, low = scales.to(dtype).unbind(-1)
    return torch.addcmul(low.unsqueeze(-1), codes, step.unsqueeze(-1)).flatten(1)[:, :width]


def _rows(data: Tensor, scales: Tensor, index: Tensor | None) -> tuple[Tensor, Tensor]:
    if index is None:
        return data, scales
    return data.index_select(0, index), scales.index_select(0, index) if scales.numel() else scales


def unpack(
    data: Tensor,
    scales: Tensor,
    index: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    weight: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """Reads rows `index` (None: all) of a stored activation: (stored * gamma + beta) * weight.

    gamma and beta (width,) turn a stored LayerNorm's normalised rows into its output; weight (rows,) is the factor of
    each row in an estimator.

    Returns:
        (len(index), width) in `dtype`; it may share memory with `data` where that holds the numbers themselves.
    """
    x = _read(*_rows(data, scales, index), dtype)
    if gamma is not None and beta is not None:
        x = torch.addcmul(beta.to(dtype), x, gamma.to(dtype))
    return x if weight is None else x * weight.to(dtype).unsqueeze(1)


def signed(value: int) -> int:
    """Returns the same 32 bits as a signed number: torch has no unsigned arithmetic."""
    value %= _WORD
    return value - _WORD if value >= _WORD // 2 else value


def _mixed(x: Tensor, seed: int) -> Tensor:
    """In place: int32 positions -> 32 bits. Wellons' lowbias32 without its last shift; see rows.h."""
    x.add_(signed(seed)).bitwise_xor_(signed(seed >> 32))
    x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF)).mul_(0x7FEB352D)
    return x.bitwise_xor_((x >> 15).bitwise_and_(0x1FFFF)).mul_(signed(0x846CA68B))


@functools.lru_cache(maxsize=4)
def _positions(count: int, device: torch.device) -> Tensor:
    return torch.arange(count, dtype=torch.int32, device=device)


def keep_mask(shape: tuple[int, ...], p: float, seed: int, device: torch.device | str = "cpu") -> Tensor:
    """Returns the dropout mask of a site: True = keep, which element i is iff hash(seed, i) >= p * 2^32.

    The same (shape, p, seed) gives the same mask everywhere: that is what the backward pass relies on.
    """
    count = torch.Size(shape).numel()
    mask = torch.empty(count, dtype=torch.bool, device=device)
    # a CPU computes it in pieces that stay in its cache; another device at once
    piece = min(count, 1 << 15) if mask.device.type == "cpu" else count
    # an unsigned comparison, as a signed one after a flip of the top bit
    least = signed(int(p * _WORD) ^ (1 << 31))
    for start in range(0, count, max(piece, 1)):
        part = mask[start : start + piece]
        bits = _mixed(_positions(piece, mask.device)[: part.numel()] + signed(start), seed)
        torch.ge(bits.bitwise_xor_(signed(1 << 31)), least, out=part)
    return mask.view(shape)


def _drop(x: Tensor, p: float, seed: int) -> Tensor:
    """Dropout of x by the mask of `seed`, scaled by 1 / (1 - p)."""
    return x * keep_mask(tuple(x.shape), p, seed, x.device) * (1 / (1 - p)) if p > 0 else x


def add_norm(
    h: Tensor, residual: Tensor, gamma: Tensor, beta: Tensor, eps: float, p: float, seed: int, kind: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Computes y = LayerNorm(dropout(h) + residual), and what its gradient needs.

    Args:
        h: (rows, width), compute dtype.
        residual: (rows, width), stream dtype, which is that of y.
        gamma: (width,), of the LayerNorm.
        beta: (width,), likewise.
        eps: likewise.
        p: probability of dropout.
        seed: of its mask.
        kind: the format in which the normalised rows are stored.

    Returns:
        y; the normalised rows before gamma and beta, stored as `kind`: data, scales; 1 / deviation (rows,).
    """
    wide = torch.promote_types(residual.dtype, torch.float32)
    total = residual.to(wide) + _drop(h.to(wide), p, seed)
    normalized, _, rstd = torch.native_layer_norm(total, total.shape[1:], None, None, eps)
    y = torch.addcmul(beta.to(wide), normalized, gamma.to(wide)).to(residual.dtype)
    return y, *pack(normalized, kind), rstd.view(-1)


def add_norm_grad(
    dy: Tensor, data: Tensor, scales: Tensor, rstd: Tensor, gamma: Tensor, p: float, seed: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Computes the gradient of `add_norm` from what it stored.

    Returns:
        d_residual (rows, width) in dy's dtype; d_h in `dtype`; d_gamma, d_beta (width,); the L2 norm of each row of
        d_h (rows,): how much each token's row matters for the weight gradients below.
    """
    wide = torch.promote_types(dy.dtype, torch.float32)
    normalized = unpack(data, scales, None, None, None, None, wide)
    dy_wide = dy.to(wide)
    d_gamma, d_beta = (dy_wide * normalized).sum(0), dy_wide.sum(0)
    g = dy_wide * gamma.to(wide)
    along = (g * normalized).mean(1, keepdim=True)
    d_sum = (g - g.mean(1, keepdim=True)).addcmul_(normalized, along, value=-1).mul_(rstd.to(wide).unsqueeze(1))
    d_h = _drop(d_sum, p, seed) if p > 0 else d_sum.clone()  # both are added to later, in place
    norms = torch.linalg.vector_norm(d_h, dim=1)
    return d_sum.to(dy.dtype), d_h.to(dtype), d_gamma, d_beta, norms


def gelu_(h: Tensor, data: Tensor, scales: Tensor) -> Tensor:
    """Stores h (rows, width) into `data` and `scales`, and returns gelu(h); h may be overwritten."""
    _write(h, data, scales)
    return F.gelu(h)


def gelu_grad_(grad: Tensor, data: Tensor, scales: Tensor, index: Tensor | None) -> Tensor:
    """grad[n] *= gelu'(stored[index[n]]), in place."""
    h = unpack(data, scales, index, None, None, None, grad.dtype)
    return grad.copy_(torch.ops.aten.gelu_backward(grad, h))


def gelu_rows(data: Tensor, scales: Tensor, index: Tensor | None, weight: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Returns gelu(stored[index]) * weight, the second matmul's input of the chosen rows; (len(index), width)."""
    x = F.gelu(unpack(data, scales, index, None, None, None, dtype))
    return x if weight is None else x.mul_(weight.to(dtype).unsqueeze(1))


def _softmax(scores: Tensor, scale: float, bias: Tensor | None) -> Tensor:
    scaled = scores.float() * scale if scores.dtype == torch.bfloat16 else scores * scale
    scaled = scaled if bias is None else scaled + bias.to(scaled.dtype)
    # a row whose keys are all masked by -inf becomes zeros, as in scaled_dot_product_attention
    hidden = (scaled == -torch.inf).all(-1, keepdim=True)
    return torch.softmax(scaled.masked_fill_(hidden, 0), -1).masked_fill_(hidden, 0)


def softmax_(scores: Tensor, scale: float, bias: Tensor | None, p: float, seed: int) -> Tensor:
    """Turns the scores of one sample into dropout(softmax(scores * scale + bias)), in place.

    Args:
        scores: (heads, queries, keys).
        scale: their factor, 1 / sqrt(d_head) as a rule.
        bias: (keys,), 0 or what the model's mask adds; -inf hides a key.
        p: probability of dropout.
        seed: of its mask.
    """
    return scores.copy_(_drop(_softmax(scores, scale, bias), p, seed))


def softmax_grad_(
    scores: Tensor, grad: Tensor, scale: float, bias: Tensor | None, p: float, seed: int
) -> tuple[Tensor, Tensor]:
    """Does what `softmax_` does; and `grad`, to its output, becomes the gradient to the raw scores. Both in place."""
    probs = _softmax(scores, scale, bias)
    dropped = _drop(probs, p, seed)
    scores.copy_(dropped)
    weighted = grad.to(probs.dtype) * dropped
    grad.copy_((weighted - weighted.sum(-1, keepdim=True) * probs) * scale)
    return scores, grad
