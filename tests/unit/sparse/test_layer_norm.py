import copy

import pytest
import torch
from torch import nn

from keepfrac.measurement.costs import saved_bytes
from keepfrac.sparse.context import Context, Draw
from keepfrac.sparse.layers.layer_norm import SparseLayerNorm
from keepfrac.sparse.selection.selectors import Selector
from keepfrac.sparse.selection.site import Site
from tests.unit.sparse.nets import changed
from tests.unit.sparse.nets import passes as run
from tests.unit.sparse.oracle import kept_part, substituted
from tests.unit.sparse.test_keeping import SELECTORS, names


def pair(selector, dtype=torch.float64, device="cpu"):
    torch.manual_seed(1)
    dense = nn.LayerNorm(12, device=device, dtype=dtype)
    nn.init.normal_(dense.weight)
    context = Context(0)
    context.hooked = True
    return dense, changed(copy.deepcopy(dense), SparseLayerNorm, site=Site("it", "layer_norm", selector, context, 0))


@pytest.mark.parametrize("selector", SELECTORS, ids=names)
def test_equals_autograd_with_the_kept_part_saved(selector, device):
    dense, sparse = pair(selector, device=device)
    x = torch.randn(3, 8, 12, device=device, dtype=torch.float64)
    _, mean, rstd = torch.native_layer_norm(x, (12,), None, None, dense.eps)
    part = kept_part((x - mean) * rstd, selector, draw=Draw(0, 0, 0))
    # torch saves x: the x of which the kept part is the normalised input
    with substituted((x, mean + part / rstd)):
        expected = run(dense, x)
    for one, other in zip(run(sparse, x), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("autocast", [False, True])
def test_the_output_is_the_dense_one_and_keep_frac_1_the_dense_layer(autocast, device):
    x = torch.randn(3, 8, 12, device=device)
    for keep_frac, count in ((0.3, 1), (1.0, 4)):
        dense, sparse = pair(Selector(keep_frac), torch.float32, device)
        expected, actual = run(dense, x, autocast), run(sparse, x, autocast)
        assert all(torch.equal(a, b) for a, b in zip(actual[:count], expected[:count], strict=True))


@pytest.mark.parametrize(("keep_frac", "limit"), [(0.1, 0.25), (0.5, 0.2), (0.9, 0.1)])
def test_error_of_dx_is_small_and_falls(keep_frac, limit):
    torch.manual_seed(0)
    dense, x = nn.LayerNorm(256), torch.randn(4, 32, 256)
    context = Context(0)
    site = Site("it", "layer_norm", Selector(keep_frac, unit="element", scope="sample"), context, 0)
    sparse = changed(copy.deepcopy(dense), SparseLayerNorm, site=site)
    grad = torch.randn_like(x) + 0.2 * x  # a part of it along the input, as in training
    exact, approx = (_dx(module, x, grad) for module in (dense, sparse))
    assert (approx - exact).norm() / exact.norm() < limit


def _dx(module, x, grad):
    x = x.clone().requires_grad_()
    module(x).backward(grad)
    return x.grad


def test_bytes_and_eval():
    dense, sparse = pair(Selector(0.5), torch.float32)
    x = torch.randn(3, 8, 12, requires_grad=True)
    dense_bytes = saved_bytes(dense, lambda: dense(x + 0).sum())
    assert dense_bytes == 4 * (3 * 8 * 12 + 2 * 3 * 8)
    assert saved_bytes(sparse, lambda: sparse(x + 0).sum()) == 4 * (3 * 8 * 6 + 6 + 3 * 8)
    assert saved_bytes(sparse, lambda: sparse.eval()(x + 0).sum()) == dense_bytes
