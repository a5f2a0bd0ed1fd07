"""The plain functions against PyTorch's own autograd, and the formats' stated errors."""

import math

import pytest
import torch
import torch.nn.functional as F

from keepfrac.sparse.kernels import plain

EXACT = torch.float64


def rows(*shape, seed=0):
    return torch.randn(*shape, dtype=EXACT, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("width", [1, 63, 64, 100, 768])
def test_signed_codes_are_within_half_a_step_of_their_group(width):
    x = rows(9, width).float() * torch.logspace(-3, 3, 9)[:, None]
    back = plain.unpack(*plain.pack(x, torch.int8), None, None, None, None, torch.float32)
    top = F.pad(x, (0, -width % 32)).view(9, -1, 32).abs().amax(-1).repeat_interleave(32, 1)[:, :width]
    assert ((back - x).abs() <= top * (0.5 / 126 * 1.01)).all()


@pytest.mark.parametrize("width", [1, 64, 100])
def test_unsigned_codes_keep_what_gelu_can_see(width):
    h = rows(50, width).float() * 3
    back = plain.unpack(*plain.pack(h, torch.uint8), None, None, None, None, torch.float32)
    assert (F.gelu(back) - F.gelu(h)).abs().max() < 0.05
    assert back.min() >= -4.1


def test_formats_without_codes_are_rounding_alone():
    x = rows(5, 70)
    assert torch.equal(plain.unpack(*plain.pack(x, EXACT), None, None, None, None, EXACT), x)
    data, scales = plain.pack(x, torch.bfloat16)
    assert torch.equal(data, x.bfloat16()) and scales.numel() == 0


def test_a_row_of_zeros_stays_zero():
    assert plain.unpack(*plain.pack(torch.zeros(2, 64), torch.int8), None, None, None, None, torch.float32).eq(0).all()


def test_rows_are_rebuilt_with_gamma_beta_and_weight():
    x, gamma, beta = rows(6, 10), rows(10, seed=1), rows(10, seed=2)
    index, weight = torch.tensor([4, 1, 1]), torch.tensor([1.0, 2.0, 0.5], dtype=EXACT)
    data, scales = plain.pack(x, EXACT)
    out = plain.unpack(data, scales, index, gamma, beta, weight, EXACT)
    assert torch.allclose(out, (x[index] * gamma + beta) * weight[:, None])


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8])
@pytest.mark.parametrize("width", [64, 100])
def test_a_piece_of_which_no_row_was_chosen(kind, width):
    stored = plain.pack(rows(5, width).float(), kind)
    nothing = torch.arange(0)
    assert plain.unpack(*stored, nothing, None, None, torch.ones(0), torch.float32).shape == (0, width)
    assert plain.pack(torch.zeros(0, width), kind)[0].shape == (0, width)


def test_masks_depend_on_the_seed_alone_and_keep_the_right_share():
    one, again, other = (plain.keep_mask((300, 1000), 0.1, seed) for seed in (5, 5, 6))
    assert torch.equal(one, again) and not torch.equal(one, other)
    for mask in (one, other):
        assert abs(mask.float().mean() - 0.9) < 5 * math.sqrt(0.09 / mask.numel())
    # two masks agree as often as independent ones, also with a seed that differs in its upper half alone
    for partner in (other, plain.keep_mask((300, 1000), 0.1, 5 + (7 << 32))):
        assert abs((one == partner).float().mean() - 0.82) < 0.01
    # neighbours, in a row and between rows, are independent too
    for a, b in ((one[:, 1:], one[:, :-1]), (one[1:], one[:-1])):
        assert abs((a & b).float().mean() - 0.81) < 0.01


def test_a_mask_does_not_depend_on_how_it_is_cut():
    flat = plain.keep_mask((100_000,), 0.3, 9)
    assert torch.equal(plain.keep_mask((10, 100), 0.3, 9).flatten(), flat[:1000])


@pytest.mark.parametrize("p", [0.0, 0.2])
def test_add_norm_is_autograds(p):
    h, residual, dy = (rows(7, 12, seed=s).requires_grad_(s < 2) for s in range(3))
    gamma, beta = rows(12, seed=3).requires_grad_(), rows(12, seed=4).requires_grad_()
    y, data, scales, rstd = plain.add_norm(h, residual, gamma, beta, 1e-6, p, 3, EXACT)
    keep = plain.keep_mask((7, 12), p, 3) if p else torch.ones(7, 12)
    want = F.layer_norm(h * keep / (1 - p) + residual, (12,), gamma, beta, 1e-6)
    assert torch.allclose(y, want)
    d_h, d_residual, d_gamma, d_beta = torch.autograd.grad(want, (h, residual, gamma, beta), dy)
    got = plain.add_norm_grad(dy, data.detach(), scales, rstd.detach(), gamma.detach(), p, 3, EXACT)
    for mine, theirs in zip(got, (d_residual, d_h, d_gamma, d_beta, d_h.norm(dim=1)), strict=True):
        assert torch.allclose(mine, theirs)


def test_gelu_is_autograds():
    h, grad = rows(5, 80).requires_grad_(), rows(5, 80, seed=1)
    data, scales = plain.empty(5, 80, EXACT, h.device)
    with torch.no_grad():
        assert torch.allclose(plain.gelu_(h, data, scales), F.gelu(h))
    (want,) = torch.autograd.grad(F.gelu(h), h, grad)
    assert torch.allclose(plain.gelu_grad_(grad.clone(), data, scales, None), want)
    index = torch.tensor([3, 0])
    assert torch.allclose(plain.gelu_rows(data, scales, index, None, EXACT), F.gelu(h)[index])


@pytest.mark.parametrize("p", [0.0, 0.2])
def test_softmax_is_autograds(p):
    scores, grad = rows(3, 6, 9).requires_grad_(), rows(3, 6, 9, seed=1)
    bias = torch.zeros(9, dtype=EXACT)
    bias[5:] = -torch.inf
    keep = plain.keep_mask((3, 6, 9), p, 8) if p else torch.ones(3, 6, 9)
    want = torch.softmax(scores * 0.5 + bias, -1) * keep / (1 - p)
    (d_want,) = torch.autograd.grad(want, scores, grad)
    assert torch.allclose(plain.softmax_(scores.detach().clone(), 0.5, bias, p, 8), want)
    probs, d_scores = plain.softmax_grad_(scores.detach().clone(), grad.clone(), 0.5, bias, p, 8)
    assert torch.allclose(probs, want) and torch.allclose(d_scores, d_want)


def test_a_sample_of_padding_alone_attends_to_nothing():
    bias = torch.full((4,), -torch.inf)
    assert plain.softmax_(torch.randn(1, 4, 4), 1.0, bias, 0.0, 0).eq(0).all()
    probs, d_scores = plain.softmax_grad_(torch.randn(1, 4, 4), torch.randn(1, 4, 4), 1.0, bias, 0.0, 0)
    assert probs.eq(0).all() and d_scores.eq(0).all()
