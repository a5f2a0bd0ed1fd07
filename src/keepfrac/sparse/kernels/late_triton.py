"""The elementwise work of the two blocks of `late` for a GPU, in Triton. plain.py has the same functions in PyTorch.

They are the specification, and the tests compare the two. triton_kernels.py launches these. A row of an activation is
worked on as a matrix (groups, features that share a scale); GROUP features make a group, and GROUPS, a power of 2, the
matrix. Arithmetic is in float32. What the interpreter of Triton does otherwise than a GPU (casts to bfloat16 cut there,
NaN in a maximum) is written out, so that what is tested without a GPU is what runs on one.
"""

import triton
import triton.language as tl


@triton.jit
def _nearest(x):
    """Rounds float32 to what a bfloat16 can hold, to nearest even; a NaN stays one."""
    bits = x.to(tl.uint32, bitcast=True)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return tl.where(x == x, bits.to(tl.float32, bitcast=True), float("nan"))


@triton.jit
def _get(at, here):
    return tl.load(at, mask=here, other=0).to(tl.float32)


@triton.jit
def _put(at, x, here):
    if at.dtype.element_ty == tl.bfloat16:
        x = _nearest(x)
    tl.store(at, x.to(at.dtype.element_ty), mask=here)


@triton.jit
def _places(piece, GROUPS: tl.constexpr, GROUP: tl.constexpr):
    """The numbers of the groups in a piece of a row (GROUPS,), and of their features (GROUPS, GROUP)."""
    groups = piece * GROUPS + tl.arange(0, GROUPS)
    return groups, groups[:, None] * GROUP + tl.arange(0, GROUP)[None, :]


@triton.jit
def _sum(x):
    return tl.sum(tl.sum(x, 1), 0)


@triton.jit
def _write(x, data, scales, row, width, groups, columns, GROUP: tl.constexpr):
    """Stores x (groups, features) of a row in the format of `data`."""
    here = columns < width
    at = data + row * width + columns
    group = row * tl.cdiv(width, GROUP) + groups
    real = groups * GROUP < width
    # NaN where a number of the group is not finite, else 0: it lives on in the scale, whatever the codes
    odd = tl.sum(tl.where(here, x * 0.0, 0.0), 1)
    if data.dtype.element_ty == tl.int8:
        top = tl.max(tl.where(here, tl.abs(x), 0.0), 1)
        # 126, not 127: the scale is rounded to bfloat16 before it divides, and may come out smaller
        scale = _nearest(tl.maximum(top, 1e-12) / 126.0 + odd)
        # adding and taking away 1.5 * 2^23 rounds to nearest even
        codes = (x * (1.0 / scale)[:, None] + 12582912.0) - 12582912.0
        codes = tl.where((odd == 0.0)[:, None] & here, codes, 0.0)
        tl.store(at, codes.to(tl.int32).to(tl.int8), mask=here)
        tl.store(scales + group, scale.to(tl.bfloat16), mask=real)
    elif data.dtype.element_ty == tl.uint8:
        low = tl.min(tl.where(here, x, float("inf")), 1)
        top = tl.max(tl.where(here, x, -float("inf")), 1)
        low = _nearest(tl.maximum(low, -4.0))
        step = _nearest(tl.maximum(tl.maximum(top, -3.9) - low, 1e-6) / 254.0 + odd)
        codes = (x - low[:, None]) * (1.0 / step)[:, None] + 0.5
        codes = tl.where((odd == 0.0)[:, None] & here, tl.minimum(tl.maximum(codes, 0.0), 255.0), 0.0)
        tl.store(at, codes.to(tl.int32).to(tl.uint8), mask=here)
        tl.store(scales + 2 * group, step.to(tl.bfloat16), mask=real)
        tl.store(scales + 2 * group + 1, low.to(tl.bfloat16), mask=real)
    else:
        _put(at, x, here)


@triton.jit
def _read(data, scales, row, width, groups, columns, GROUP: tl.constexpr):
    """Reads (groups, features) of a stored row; 0 beyond its width, but for `low` in a short last group."""
    x = _get(data + row * width + columns, columns < width)
    group = row * tl.cdiv(width, GROUP) + groups
    real = groups * GROUP < width
    if data.dtype.element_ty == tl.int8:
        x = x * _get(scales + group, real)[:, None]
    elif data.dtype.element_ty == tl.uint8:
        x = x * _get(scales + 2 * group, real)[:, None] + _get(scales + 2 * group + 1, real)[:, None]
    return x


@triton.jit
def _kept(positions, first, second, threshold, scale):
    """The factors of dropout: 0, or `scale` where hash(seed, position) >= threshold; see plain.keep_mask and rows.h."""
    x = positions.to(tl.uint32) + first.to(tl.uint32, bitcast=True)
    x = x ^ second.to(tl.uint32, bitcast=True)
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return tl.where(x >= threshold.to(tl.uint32, bitcast=True), scale, 0.0)


@triton.jit
def _normal_cdf(x):
    return 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def pack(x, data, scales, y, width, GROUPS: tl.constexpr, GROUP: tl.constexpr):
    """Stores x (rows, width); with a `y`, which may be x itself, gelu(x) goes there."""
    row = tl.program_id(0).to(tl.int64)
    groups, columns = _places(tl.program_id(1), GROUPS, GROUP)
    h = _get(x + row * width + columns, columns < width)
    _write(h, data, scales, row, width, groups, columns, GROUP)
    if y is not None:
        _put(y + row * width + columns, h * _normal_cdf(h), columns < width)


@triton.jit
def unpack(
    data, scales, index, gamma, beta, weight, out, width,
    GELU: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """out[n] = f(stored[index[n]] * gamma + beta) * weight[n], f GELU or nothing; each but `stored` may be None."""
    n = tl.program_id(0).to(tl.int64)
    groups, columns = _places(tl.program_id(1), GROUPS, GROUP)
    here = columns < width
    row = n
    if index is not None:
        row = tl.load(index + n)
    x = _read(data, scales, row, width, groups, columns, GROUP)
    if gamma is not None:
        x = x * _get(gamma + columns, here) + _get(beta + columns, here)
    if GELU:
        x = x * _normal_cdf(x)
    if weight is not None:
        x = x * tl.load(weight + n).to(tl.float32)
    _put(out + n * width + columns, x, here)


@triton.jit
def gelu_grad(grad, data, scales, index, width, GROUPS: tl.constexpr, GROUP: tl.constexpr):
    """grad[n] *= gelu'(stored[index[n]]), in place."""
    n = tl.program_id(0).to(tl.int64)
    groups, columns = _places(tl.program_id(1), GROUPS, GROUP)
    here = columns < width
    row = n
    if index is not None:
        row = tl.load(index + n)
    x = _read(data, scales, row, width, groups, columns, GROUP)
    slope = _normal_cdf(x) + x * tl.exp(-0.5 * x * x) * 0.3989422804014327
    at = grad + n * width + columns
    _put(at, _get(at, here) * slope, here)


@triton.jit(do_not_specialize=["first", "second", "threshold"])
def add_norm(
    h, residual, gamma, beta, y, data, scales, rstd, width, eps, first, second, threshold, scale,
    DROP: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Gives y = LayerNorm(dropout(h) + residual), the normalised row (before gamma and beta) and 1 / deviation."""
    row = tl.program_id(0).to(tl.int64)
    groups, columns = _places(0, GROUPS, GROUP)
    here, at = columns < width, row * width + columns
    x = _get(h + at, here)
    if DROP:
        x = x * _kept(at, first, second, threshold, scale)
    x = x + _get(residual + at, here)
    x = tl.where(here, x - _sum(x) / width, 0.0)
    inverse = tl.div_rn(1.0, tl.sqrt_rn(_sum(x * x) / width + eps))
    x = x * inverse
    tl.store(rstd + row, inverse)
    _put(y + at, x * _get(gamma + columns, here) + _get(beta + columns, here), here)
    _write(x, data, scales, row, width, groups, columns, GROUP)


@triton.jit(do_not_specialize=["first", "second", "threshold"])
def add_norm_grad(
    dy, data, scales, rstd, gamma, d_residual, d_h, norms, sums, rows, width, first, second, threshold, scale,
    DROP: tl.constexpr, ROWS: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """The gradient of add_norm for ROWS rows; their share of d_gamma and d_beta goes to sums (programs, 2, width)."""
    groups, columns = _places(0, GROUPS, GROUP)
    gain = _get(gamma + columns, columns < width)
    to_gamma = tl.zeros([GROUPS, GROUP], tl.float32)
    to_beta = tl.zeros([GROUPS, GROUP], tl.float32)
    for i in range(ROWS):
        row = tl.program_id(0).to(tl.int64) * ROWS + i
        here, at = (columns < width) & (row < rows), row * width + columns
        # a row beyond the last reads the last once more, and all that it would write is masked
        normalized = _read(data, scales, tl.minimum(row, rows - 1), width, groups, columns, GROUP)
        g = _get(dy + at, here)
        to_gamma += g * normalized
        to_beta += g
        g = g * gain
        g = g - _sum(g) / width - normalized * (_sum(g * normalized) / width)
        g = tl.where(here, g * tl.load(rstd + row, mask=row < rows, other=0), 0.0)
        _put(d_residual + at, g, here)
        if DROP:
            g = g * _kept(at, first, second, threshold, scale)
        _put(d_h + at, g, here)
        tl.store(norms + row, tl.sqrt_rn(_sum(g * g)), mask=row < rows)
    at = sums + tl.program_id(0).to(tl.int64) * 2 * width + columns
    tl.store(at, to_gamma, mask=columns < width)
    tl.store(at + width, to_beta, mask=columns < width)


@triton.jit
def _softmax(scores, bias, at, column, here, keys, factor):
    """softmax(scores * factor + bias) of some rows; a row whose keys are all masked by -inf becomes zeros."""
    x = _get(scores + at, here) * factor
    if bias is not None:
        x = x + _get(bias + column, column < keys)[None, :]
    x = tl.where(here, x, -float("inf"))
    top = tl.max(x, 1)
    x = tl.exp(x - tl.where(top == -float("inf"), 0.0, top)[:, None])
    total = tl.sum(x, 1)
    return x / tl.where(total == 0.0, 1.0, total)[:, None]


@triton.jit(do_not_specialize=["first", "second", "threshold"])
def softmax(
    scores, grad, bias, rows, keys, factor, first, second, threshold, scale,
    DROP: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Scores (rows, keys) become dropout(softmax(scores * factor + bias)); a `grad` to that, one to the scores."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, KEYS)
    here = (row < rows)[:, None] & (column < keys)[None, :]
    at = row[:, None] * keys + column[None, :]
    probs = _softmax(scores, bias, at, column, here, keys, factor)
    dropped = probs
    if DROP:
        dropped = probs * _kept(at, first, second, threshold, scale)
    _put(scores + at, dropped, here)
    if grad is not None:
        weighted = _get(grad + at, here) * dropped
        _put(grad + at, (weighted - tl.sum(weighted, 1)[:, None] * probs) * factor, here)
