"""The C++ and the Triton kernels against the plain functions, on any shape and dtype; the cache; NaN and infinity.

Triton decides while it is imported whether it interprets, so test_triton.py runs this file in a process of its own,
with KERNELS=triton; with TRITON_INTERPRET=1 all of this runs on a CPU.
"""

import itertools
import logging
import os
import shutil

import pytest
import torch
from torch.utils import cpp_extension

from keepfrac.sparse import kernels
from keepfrac.sparse.kernels import compiled, plain

TRITON = os.environ.get("KERNELS") == "triton"
DEVICE = "cuda" if TRITON and os.environ.get("TRITON_INTERPRET") != "1" else "cpu"
SHAPES = ((1, 1), (3, 100), (1, 1100)) if TRITON else ((1, 1), (3, 64), (5, 100), (40, 768), (2, 63))
MIXES = list(itertools.product((0.3, 0.0), (torch.int8, torch.float32)))
HALF = (torch.float16,) if TRITON else ()
FLOATS = (torch.float32, torch.bfloat16)
KINDS = (torch.int8, torch.uint8, torch.bfloat16, torch.float32)
# NumPy, in which Triton interprets, warns of what is meant to happen to NaN and infinity
pytestmark = [
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:All-NaN slice encountered:RuntimeWarning"),
    pytest.mark.skipif(not TRITON and not (shutil.which("c++") and shutil.which("ninja")), reason="no C++ compiler"),
]


@pytest.fixture(scope="module")
def mine():
    if not TRITON:
        return compiled.load()
    from keepfrac.sparse.kernels import triton_kernels

    return triton_kernels


def close(mine, theirs, dtype=torch.float32):
    """Equal up to the order of sums, and one rounding where numbers are bfloat16."""
    tolerance = 2e-2 if torch.bfloat16 in (dtype, mine.dtype) else 2e-5
    torch.testing.assert_close(mine.float(), theirs.float(), rtol=tolerance, atol=tolerance)


def same_codes(mine, theirs):
    """Codes may differ by one where a rounding fell on the other side; scales not at all."""
    (data, scales), (data_, scales_) = mine, theirs
    assert data.dtype == data_.dtype and scales.shape == scales_.shape
    if data.dtype in (torch.int8, torch.uint8):
        assert (data.int() - data_.int()).abs().max() <= 1
        assert (data != data_).float().mean() < 0.01
    else:
        close(data, data_, data.dtype)
    torch.testing.assert_close(scales, scales_.to(scales.dtype), rtol=1e-2, atol=1e-6)


def inputs(shape, dtype, count=2):
    generator = torch.Generator().manual_seed(sum(shape))
    return [(torch.randn(shape, generator=generator) * 2).to(dtype) for _ in range(count)]


def there(*tensors):
    return [None if one is None else one.to(DEVICE) for one in tensors]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [*FLOATS, *HALF])
@pytest.mark.parametrize("kind", KINDS)
def test_pack_and_unpack(mine, shape, dtype, kind):
    (x,) = there(*inputs(shape, dtype, 1))
    stored = plain.pack(x, kind)
    same_codes(mine.pack(x, kind), stored)
    gamma, beta = there(*torch.randn(2, shape[1]))
    index, weight = there(torch.randint(shape[0], (shape[0] * 2,)), torch.rand(shape[0] * 2))
    for arguments in (
        (None, None, None, None),
        (index, gamma, beta, weight),
        (index, None, None, weight),
        (index[:0], None, None, weight[:0]),
    ):
        got, want = (one.unpack(*stored, *arguments, dtype) for one in (mine, plain))
        assert got.dtype == want.dtype and got.shape == want.shape
        close(got, want, torch.bfloat16 if dtype == torch.float16 else dtype)


@pytest.mark.parametrize("shape", [*SHAPES, (18, 33)])  # 18 rows: several programs add up
@pytest.mark.parametrize(("dtype", "stream"), [(a, b) for a in FLOATS for b in FLOATS])
@pytest.mark.parametrize(("p", "kind"), MIXES[::3] if TRITON else MIXES)
def test_add_norm(mine, shape, dtype, stream, p, kind):
    h, residual, dy = there(*inputs(shape, dtype, 1), *inputs(shape, stream))
    gamma, beta = there(*torch.randn(2, shape[1]))
    arguments = (h, residual, gamma, beta, 1e-6, p, 1 << 40 | 5, kind)
    got, want = (one.add_norm(*arguments) for one in (mine, plain))
    close(got[0], want[0], stream)
    if shape[1] > 1:  # the deviation of one number is the epsilon's
        same_codes(got[1:3], want[1:3])
        rtol = 1e-2 if stream == torch.bfloat16 and not TRITON else 1e-4
        torch.testing.assert_close(got[3], want[3], rtol=rtol, atol=1e-4)
    # the same stored rows for both: a code that differs by one is not an error of the gradient
    stored = (want[1].contiguous(), want[2], want[3].float().contiguous())
    got, want = (one.add_norm_grad(dy, *stored, gamma, p, 1 << 40 | 5, dtype) for one in (mine, plain))
    for a, b, limit in zip(got, want, (stream, dtype, stream, stream, dtype), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        rtol = 2e-2 if limit == torch.bfloat16 else 1e-4
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * b.abs().max().item() + 1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", [torch.uint8, torch.bfloat16, torch.float32])
def test_gelu(mine, shape, dtype, kind):
    h, grad = there(*inputs(shape, dtype))
    got, want = (plain.empty(*shape, kind, h.device) for _ in range(2))
    close(mine.gelu_(h.clone(), *got), plain.gelu_(h.clone(), *want), dtype)
    same_codes(got, want)
    index, weight = there(torch.randint(shape[0], (4,)), torch.rand(4))
    some = grad[:1].repeat(4, 1)
    for one, two in (
        (one.gelu_rows(*want, index, weight, dtype) for one in (mine, plain)),
        (one.gelu_grad_(grad.clone(), *want, None) for one in (mine, plain)),
        (one.gelu_grad_(some.clone(), *want, index) for one in (mine, plain)),
    ):
        close(one, two, dtype)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 5), (12, 20, 40), (2, 3, 130)])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("hidden", [None, 0, 2, "all"])
def test_softmax(mine, shape, dtype, p, hidden):
    scores, grad = there(*inputs(shape, dtype))
    bias = None
    if hidden is not None:
        bias = torch.zeros(shape[-1], device=DEVICE)
        bias[: shape[-1] if hidden == "all" else min(hidden, shape[-1] - 1)] = -torch.inf
    arguments = (0.125, bias, p, 77)
    got, want = (one.softmax_(scores.clone(), *arguments) for one in (mine, plain))
    close(got, want, dtype)
    if hidden == "all":
        assert got.eq(0).all()
    got, want = (one.softmax_grad_(scores.clone(), grad.clone(), *arguments) for one in (mine, plain))
    for a, b in zip(got, want, strict=True):
        close(a, b, dtype)


@pytest.mark.parametrize("p", [0.1, 0.25, 0.9])
@pytest.mark.parametrize("seed", [0, 3, 1 << 33, (1 << 62) + 12345])
def test_the_masks_are_the_same_to_the_bit(mine, seed, p):
    kept = mine.softmax_(torch.zeros(3, 40, 60, device=DEVICE), 1.0, None, p, seed) > 0
    assert torch.equal(kept, plain.keep_mask((3, 40, 60), p, seed, DEVICE))
    rows = torch.zeros(9, 100, device=DEVICE)
    _y, data, scales, rstd = mine.add_norm(rows, rows, rows[0], rows[0], 1.0, p, seed, torch.float32)
    dy = torch.randn(9, 100, device=DEVICE)
    ones = torch.ones(100, device=DEVICE)
    d_residual, d_h, *_ = mine.add_norm_grad(dy, data, scales, rstd, ones, p, seed, torch.float32)
    assert d_residual.ne(0).all()
    assert torch.equal(d_h != 0, plain.keep_mask((9, 100), p, seed, DEVICE))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("which", ["mine", "plain"])
def test_what_is_not_finite_is_not_hidden(mine, which, bad, dtype):
    mine = mine if which == "mine" else plain
    x = torch.randn(4, 128, device=DEVICE).to(dtype)
    x[2, 70] = bad
    ok = [0, 1, 3]
    for kind in (torch.int8, torch.uint8, torch.bfloat16):
        stored = mine.pack(x, kind)
        back = mine.unpack(*stored, None, None, None, None, torch.float32)
        assert back[ok].isfinite().all() and not back[2, 64:].isfinite().all()
        for gelu in (mine.gelu_rows(*stored, None, None, dtype), mine.gelu_grad_(torch.ones_like(x), *stored, None)):
            # gelu(inf) is inf, its slope 1: of the numbers themselves that is right
            assert gelu[ok].isfinite().all()
            assert not gelu[2].isfinite().all() or (kind == torch.bfloat16 and bad == torch.inf)
    room = plain.empty(4, 128, torch.uint8, x.device)
    gelu = mine.gelu_(x.clone(), *room)
    assert gelu[ok].isfinite().all() and not gelu[2].isfinite().all()
    ones, other = torch.ones(128, device=DEVICE), torch.randn(4, 128, device=DEVICE)
    y, *stored = mine.add_norm(x, other, ones, ones, 1e-6, 0.0, 0, torch.int8)
    assert y[ok].isfinite().all() and not y[2].isfinite().any()
    found = mine.add_norm_grad(other, *stored, ones, 0.0, 0, torch.float32)
    assert found[0][ok].isfinite().all() and not found[0][2].isfinite().any()
    assert not found[4][2].isfinite() and not found[2].isfinite().all()
    probs = mine.softmax_(x[None].clone(), 1.0, None, 0.0, 0)[0, 2]
    assert not probs.isfinite().all() or bad == -torch.inf


def test_a_gradient_that_is_not_finite_reaches_all_that_it_touches(mine):
    x, gamma = torch.randn(3, 70, device=DEVICE), torch.ones(70, device=DEVICE)
    _y, *stored = mine.add_norm(x, x, gamma, gamma, 1e-6, 0.5, 7, torch.int8)
    dy = torch.ones(3, 70, device=DEVICE)
    dy[1, 3] = torch.nan
    d_residual, d_h, d_gamma, d_beta, norms = mine.add_norm_grad(dy, *stored, gamma, 0.5, 7, torch.float32)
    for rows in (d_residual, d_h, norms):
        assert rows[[0, 2]].isfinite().all() and rows[1].isnan().all()
    for sums in (d_gamma, d_beta):
        assert sums[3].isnan() and sums[4:].isfinite().all()


@pytest.mark.skipif(not TRITON, reason="the C++ kernels are those that were built")
def test_kernels_triton_means_these_kernels(mine):
    assert kernels.kernels_for("triton", torch.zeros(1, device=DEVICE), torch.float32) is mine
    assert kernels.prepare("triton", torch.device(DEVICE)) == "triton"


@pytest.mark.skipif(TRITON, reason="nothing is built")
def test_a_build_is_announced_once_and_cached(tmp_path, monkeypatch, caplog):
    # a build of another folder in this process would have a number in its name
    monkeypatch.setattr(cpp_extension, "JIT_EXTENSION_VERSIONER", cpp_extension.ExtensionVersioner())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with caplog.at_level(logging.INFO):
        path = compiled.build()
        assert compiled.build() == path
    assert [r.getMessage().startswith("building the CPU kernels") for r in caplog.records] == [True]
    assert path.is_relative_to(tmp_path / "keepfrac" / "kernels") and [p.name for p in path.parent.iterdir()] == [
        "late.so"
    ]
    assert compiled.cached_path(native=True) != path
