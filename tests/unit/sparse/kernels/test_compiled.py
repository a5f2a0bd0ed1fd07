"""The C++ kernels against the plain functions, on any shape and dtype; the cache; NaN and infinity."""

import logging
import shutil

import pytest
import torch

from keepfrac.sparse.kernels import compiled, plain
from tests.unit.sparse.kernels.compare import FLOATS, KINDS, SHAPES, close, inputs, same_codes

pytestmark = pytest.mark.skipif(
    not (shutil.which("c++") and shutil.which("ninja")), reason="no C++ compiler, or no ninja"
)


@pytest.fixture(scope="module")
def cpp():
    return compiled.load()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", KINDS)
def test_pack_and_unpack(cpp, shape, dtype, kind):
    (x,) = inputs(shape, dtype, 1)
    stored = plain.pack(x, kind)
    same_codes(cpp.pack(x, kind), stored)
    gamma, beta = torch.randn(2, shape[1])
    index = torch.randint(shape[0], (shape[0] * 2,))
    weight = torch.rand(len(index))
    for arguments in ((None, None, None, None), (index, gamma, beta, weight), (index, None, None, weight)):
        close(cpp.unpack(*stored, *arguments, dtype), plain.unpack(*stored, *arguments, dtype), dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("stream", FLOATS)
@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("kind", [torch.int8, torch.float32])
def test_add_norm(cpp, shape, dtype, stream, p, kind):
    (h,), (residual, dy) = inputs(shape, dtype, 1), inputs(shape, stream)
    gamma, beta = torch.randn(2, shape[1])
    mine, theirs = (one.add_norm(h, residual, gamma, beta, 1e-6, p, 1 << 40 | 5, kind) for one in (cpp, plain))
    close(mine[0], theirs[0], stream)
    if shape[1] > 1:  # the deviation of one number is the epsilon's
        torch.testing.assert_close(mine[3], theirs[3], rtol=1e-2 if stream == torch.bfloat16 else 1e-4, atol=1e-4)
    # the same stored rows for both: a code that differs by one is not an error of the gradient
    _y, data, scales, rstd = theirs
    stored = (data.contiguous(), scales, rstd.float().contiguous())
    got, want = (one.add_norm_grad(dy, *stored, gamma, p, 1 << 40 | 5, dtype) for one in (cpp, plain))
    for a, b, limit in zip(got, want, (stream, dtype, stream, stream, dtype), strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(
            a, b, rtol=2e-2 if limit == torch.bfloat16 else 1e-4, atol=1e-2 * b.abs().max().item() + 1e-6
        )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", [torch.uint8, torch.bfloat16, torch.float32])
def test_gelu(cpp, shape, dtype, kind):
    h, grad = inputs(shape, dtype)
    mine, theirs = plain.empty(*shape, kind, h.device), plain.empty(*shape, kind, h.device)
    close(cpp.gelu_(h.clone(), *mine), plain.gelu_(h.clone(), *theirs), dtype)
    same_codes(mine, theirs)
    index = torch.randint(shape[0], (4,))
    weight = torch.rand(4)
    close(cpp.gelu_rows(*theirs, index, weight, dtype), plain.gelu_rows(*theirs, index, weight, dtype), dtype)
    close(cpp.gelu_grad_(grad.clone(), *theirs, None), plain.gelu_grad_(grad.clone(), *theirs, None), dtype)
    some = grad[:1].repeat(4, 1)
    close(cpp.gelu_grad_(some.clone(), *theirs, index), plain.gelu_grad_(some.clone(), *theirs, index), dtype)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 5), (12, 40, 40), (2, 3, 130)])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("hidden", [None, 0, 2, "all"])
def test_softmax(cpp, shape, dtype, p, hidden):
    scores, grad = inputs(shape, dtype)
    bias = None
    if hidden is not None:
        bias = torch.zeros(shape[-1])
        bias[: shape[-1] if hidden == "all" else min(hidden, shape[-1] - 1)] = -torch.inf
    arguments = (0.125, bias, p, 77)
    close(cpp.softmax_(scores.clone(), *arguments), plain.softmax_(scores.clone(), *arguments), dtype)
    mine = cpp.softmax_grad_(scores.clone(), grad.clone(), *arguments)
    theirs = plain.softmax_grad_(scores.clone(), grad.clone(), *arguments)
    for a, b in zip(mine, theirs, strict=True):
        close(a, b, dtype)


def test_the_masks_are_the_same_to_the_bit(cpp):
    """Through softmax of equal scores: what is kept is not zero."""
    for seed in (0, 3, 1 << 33, (1 << 62) + 12345):
        kept = cpp.softmax_(torch.zeros(8, 200, 200), 1.0, None, 0.25, seed) > 0
        assert torch.equal(kept, plain.keep_mask((8, 200, 200), 0.25, seed))


@pytest.mark.parametrize("which", ["cpp", "torch"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_not_hidden(cpp, which, bad):
    functions = cpp if which == "cpp" else plain
    x = torch.randn(4, 128)
    x[2, 70] = bad
    ok = [0, 1, 3]
    for kind in (torch.int8, torch.uint8):
        back = functions.unpack(*functions.pack(x, kind), None, None, None, None, torch.float32)
        assert back[ok].isfinite().all() and not back[2, 64:].isfinite().all()
    room = plain.empty(4, 128, torch.uint8, x.device)
    assert functions.gelu_(x.clone(), *room)[ok].isfinite().all()
    assert not functions.gelu_grad_(torch.ones(4, 128), *room, None)[2].isfinite().all()
    gamma, beta = torch.ones(128), torch.zeros(128)
    y, data, scales, rstd = functions.add_norm(x, torch.randn(4, 128), gamma, beta, 1e-6, 0.0, 0, torch.int8)
    assert y[ok].isfinite().all() and not y[2].isfinite().any()
    gradients = functions.add_norm_grad(torch.randn(4, 128), data, scales, rstd, gamma, 0.0, 0, torch.float32)
    assert gradients[0][ok].isfinite().all() and not gradients[0][2].isfinite().any()
    assert not gradients[4][2].isfinite()
    assert not functions.softmax_(x[None].clone(), 1.0, None, 0.0, 0)[0, 2].isfinite().all() or bad == -torch.inf


def test_a_build_is_announced_once_and_cached(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with caplog.at_level(logging.INFO):
        path = compiled.build()
        assert compiled.build() == path
    assert [r.getMessage().startswith("building the CPU kernels") for r in caplog.records] == [True]
    assert path.is_relative_to(tmp_path / "keepfrac" / "kernels") and [p.name for p in path.parent.iterdir()] == [
        "late.so"
    ]
    assert compiled.cached_path(native=True) != path
