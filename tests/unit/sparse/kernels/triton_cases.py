"""The Triton kernels against the plain functions. test_triton.py runs this file, in a process of its own.

Triton decides while it is imported whether it interprets: with TRITON_INTERPRET=1 all of this runs on a CPU.
"""

import os

import pytest
import torch

from keepfrac.sparse import kernels
from keepfrac.sparse.kernels import plain, triton_kernels
from tests.unit.sparse.kernels.compare import FLOATS, KINDS, close, inputs, same_codes

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
SHAPES = ((1, 1), (3, 100), (1, 1100))
# NumPy, in which Triton interprets, warns of what is meant to happen to NaN and infinity
pytestmark = [
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:All-NaN slice encountered:RuntimeWarning"),
]


def there(*tensors):
    return [None if one is None else one.to(DEVICE) for one in tensors]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [*FLOATS, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_pack_and_unpack(shape, dtype, kind):
    (x,) = there(*inputs(shape, dtype, 1))
    stored = plain.pack(x, kind)
    same_codes(triton_kernels.pack(x, kind), stored)
    gamma, beta = there(*torch.randn(2, shape[1]))
    index, weight = there(torch.randint(shape[0], (shape[0] * 2,)), torch.rand(shape[0] * 2))
    for arguments in (
        (None, None, None, None),
        (index, gamma, beta, weight),
        (index, None, None, weight),
        (index[:0], None, None, weight[:0]),
    ):
        got, want = (one.unpack(*stored, *arguments, dtype) for one in (triton_kernels, plain))
        assert got.dtype == want.dtype and got.shape == want.shape
        close(got, want, torch.bfloat16 if dtype == torch.float16 else dtype)


@pytest.mark.parametrize("shape", [*SHAPES, (18, 33)])  # 18 rows: several programs add up
@pytest.mark.parametrize(("dtype", "stream"), [(a, b) for a in FLOATS for b in FLOATS])
@pytest.mark.parametrize(("p", "kind"), [(0.3, torch.int8), (0.0, torch.float32)])
def test_add_norm(shape, dtype, stream, p, kind):
    h, residual, dy = there(*inputs(shape, dtype, 1), *inputs(shape, stream))
    gamma, beta = there(*torch.randn(2, shape[1]))
    arguments = (h, residual, gamma, beta, 1e-6, p, 1 << 40 | 5, kind)
    mine, theirs = (one.add_norm(*arguments) for one in (triton_kernels, plain))
    close(mine[0], theirs[0], stream)
    if shape[1] > 1:  # the deviation of one number is the epsilon's
        same_codes(mine[1:3], theirs[1:3])
        torch.testing.assert_close(mine[3], theirs[3], rtol=1e-4, atol=1e-4)
    # the same stored rows for both: a code that differs by one is not an error of the gradient
    stored = (*theirs[1:3], theirs[3].float().contiguous())
    got, want = (one.add_norm_grad(dy, *stored, gamma, p, 1 << 40 | 5, dtype) for one in (triton_kernels, plain))
    for a, b, limit in zip(got, want, (stream, dtype, stream, stream, dtype), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        rtol = 2e-2 if limit == torch.bfloat16 else 1e-4
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * b.abs().max().item() + 1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", [torch.uint8, torch.bfloat16, torch.float32])
def test_gelu(shape, dtype, kind):
    h, grad = there(*inputs(shape, dtype))
    mine, theirs = (plain.empty(*shape, kind, h.device) for _ in range(2))
    close(triton_kernels.gelu_(h.clone(), *mine), plain.gelu_(h.clone(), *theirs), dtype)
    same_codes(mine, theirs)
    index, weight = there(torch.randint(shape[0], (4,)), torch.rand(4))
    some = grad[:1].repeat(4, 1)
    for one, two in (
        (one.gelu_rows(*theirs, index, weight, dtype) for one in (triton_kernels, plain)),
        (one.gelu_grad_(grad.clone(), *theirs, None) for one in (triton_kernels, plain)),
        (one.gelu_grad_(some.clone(), *theirs, index) for one in (triton_kernels, plain)),
    ):
        close(one, two, dtype)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 5), (12, 20, 40), (2, 3, 130)])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("hidden", [None, 0, 2, "all"])
def test_softmax(shape, dtype, p, hidden):
    scores, grad = there(*inputs(shape, dtype))
    bias = None
    if hidden is not None:
        bias = torch.zeros(shape[-1], device=DEVICE)
        bias[: shape[-1] if hidden == "all" else min(hidden, shape[-1] - 1)] = -torch.inf
    arguments = (0.125, bias, p, 77)
    mine, theirs = (one.softmax_(scores.clone(), *arguments) for one in (triton_kernels, plain))
    close(mine, theirs, dtype)
    if hidden == "all":
        assert mine.eq(0).all()
    mine, theirs = (one.softmax_grad_(scores.clone(), grad.clone(), *arguments) for one in (triton_kernels, plain))
    for a, b in zip(mine, theirs, strict=True):
        close(a, b, dtype)


@pytest.mark.parametrize("p", [0.1, 0.25, 0.9])
@pytest.mark.parametrize("seed", [0, 3, 1 << 33, (1 << 62) + 12345])
def test_the_masks_are_the_same_to_the_bit(seed, p):
    kept = triton_kernels.softmax_(torch.zeros(3, 40, 60, device=DEVICE), 1.0, None, p, seed) > 0
    assert torch.equal(kept, plain.keep_mask((3, 40, 60), p, seed, DEVICE))
    rows = torch.zeros(9, 100, device=DEVICE)
    _y, data, scales, rstd = triton_kernels.add_norm(rows, rows, rows[0], rows[0], 1.0, p, seed, torch.float32)
    dy = torch.randn(9, 100, device=DEVICE)
    ones = torch.ones(100, device=DEVICE)
    d_residual, d_h, *_ = triton_kernels.add_norm_grad(dy, data, scales, rstd, ones, p, seed, torch.float32)
    assert d_residual.ne(0).all()
    assert torch.equal(d_h != 0, plain.keep_mask((9, 100), p, seed, DEVICE))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", FLOATS)
def test_what_is_not_finite_is_not_hidden(bad, dtype):
    x = torch.randn(4, 128, device=DEVICE).to(dtype)
    x[2, 70] = bad
    ok = [0, 1, 3]
    for kind in (torch.int8, torch.uint8, torch.bfloat16):
        stored = triton_kernels.pack(x, kind)
        back = triton_kernels.unpack(*stored, None, None, None, None, torch.float32)
        assert back[ok].isfinite().all() and not back[2, 64:].isfinite().all()
        for gelu in (
            triton_kernels.gelu_rows(*stored, None, None, dtype),
            triton_kernels.gelu_grad_(torch.ones_like(x), *stored, None),
        ):
            # gelu(inf) is inf, its slope 1: of the numbers themselves that is right
            assert gelu[ok].isfinite().all()
            assert not gelu[2].isfinite().all() or (kind == torch.bfloat16 and bad == torch.inf)
    room = plain.empty(4, 128, torch.uint8, x.device)
    gelu = triton_kernels.gelu_(x.clone(), *room)
    assert gelu[ok].isfinite().all() and not gelu[2].isfinite().all()
    ones, other = torch.ones(128, device=DEVICE), torch.randn(4, 128, device=DEVICE)
    y, *stored = triton_kernels.add_norm(x, other, ones, ones, 1e-6, 0.0, 0, torch.int8)
    assert y[ok].isfinite().all() and not y[2].isfinite().any()
    found = triton_kernels.add_norm_grad(other, *stored, ones, 0.0, 0, torch.float32)
    assert found[0][ok].isfinite().all() and not found[0][2].isfinite().any()
    assert not found[4][2].isfinite() and not found[2].isfinite().all()
    probs = triton_kernels.softmax_(x[None].clone(), 1.0, None, 0.0, 0)[0, 2]
    assert not probs.isfinite().all() or bad == -torch.inf


def test_a_gradient_that_is_not_finite_reaches_all_that_it_touches():
    x, gamma = torch.randn(3, 70, device=DEVICE), torch.ones(70, device=DEVICE)
    _y, *stored = triton_kernels.add_norm(x, x, gamma, gamma, 1e-6, 0.5, 7, torch.int8)
    dy = torch.ones(3, 70, device=DEVICE)
    dy[1, 3] = torch.nan
    d_residual, d_h, d_gamma, d_beta, norms = triton_kernels.add_norm_grad(dy, *stored, gamma, 0.5, 7, torch.float32)
    for rows in (d_residual, d_h, norms):
        assert rows[[0, 2]].isfinite().all() and rows[1].isnan().all()
    for sums in (d_gamma, d_beta):
        assert sums[3].isnan() and sums[4:].isfinite().all()


def test_kernels_triton_means_these_kernels():
    assert kernels.kernels_for("triton", torch.zeros(1, device=DEVICE), torch.float32) is triton_kernels
    assert kernels.prepare("triton", torch.device(DEVICE)) == "triton"
