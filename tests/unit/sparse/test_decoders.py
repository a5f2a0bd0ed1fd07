"""Sites that only decoders have, or have otherwise: RMSNorms, grouped heads under a causal mask."""

import copy

import pytest
import torch
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from keepfrac.sparse.context import Context, Draw
from keepfrac.sparse.convert import sparsify
from keepfrac.sparse.layers.rms_norm import sparse_rms_norm
from keepfrac.sparse.selection.selectors import Selector
from keepfrac.sparse.selection.site import Site
from tests.tiny import DECODERS, inputs, tiny
from tests.unit.sparse.nets import changed
from tests.unit.sparse.oracle import kept_part, substituted
from tests.unit.sparse.test_keeping import SELECTORS, names

EPS = 1e-6


def run(norm, x):
    """Output, and gradients of x and weight."""
    x = x.clone().requires_grad_()
    y = norm(x)
    return (y.detach(), *torch.autograd.grad(y, [x, norm.weight], torch.cos(torch.arange(y.numel()).view(y.shape))))


def pair(selector, stock=LlamaRMSNorm, offset=0.0):
    torch.manual_seed(1)
    dense = stock(12, eps=EPS)
    torch.nn.init.normal_(dense.weight)
    context = Context(0)
    context.hooked = True
    site = Site("it", "layer_norm", selector, context, 0)
    own = {"site": site, "offset": offset, "eps_of_norm": EPS}
    return dense, changed(copy.deepcopy(dense), sparse_rms_norm(stock), **own)


@pytest.mark.parametrize("selector", SELECTORS, ids=names)
@pytest.mark.parametrize(("stock", "offset"), [(LlamaRMSNorm, 0.0), (Gemma3RMSNorm, 1.0)])
def test_an_rms_norm_equals_autograd_with_the_kept_part_saved(selector, stock, offset):
    dense, sparse = pair(selector, stock, offset)
    x = torch.randn(3, 8, 12)
    rstd = torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS)
    part = kept_part(x * rstd, selector, draw=Draw(0, 0, 0))
    with substituted((x, part / rstd), (x * rstd, part)):  # it saves both
        expected = run(dense, x)
    for one, other in zip(run(sparse, x), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_keep_frac_1_is_the_dense_norm():
    x = torch.randn(3, 8, 12)
    dense, sparse = pair(Selector(1.0))
    assert all(torch.equal(a, b) for a, b in zip(run(sparse, x), run(dense, x), strict=True))


def gradients(family, prepare=lambda net: None):
    """Loss and all gradients as one vector, of the same weights each time."""
    torch.manual_seed(0)
    net = tiny(family, layers=2).train()
    handle = prepare(net)
    loss = net(**inputs(), labels=inputs()["input_ids"]).loss
    loss.backward()
    if handle is not None:
        handle.check()
    return loss.detach(), torch.cat([p.grad.flatten() for p in net.parameters()])


@pytest.mark.parametrize("family", [name for name in DECODERS if name != "gpt2"])
@pytest.mark.parametrize("site", ["attention", "softmax", "layer_norm"])
def test_the_forward_pass_stays_and_the_error_falls(family, site):
    loss, exact = gradients(family)
    errors = []
    for keep_frac in (0.3, 0.95):
        selector = Selector(keep_frac, unit="element", scope="sample")
        mine, found = gradients(family, lambda net, selector=selector: sparsify(net, [site], selector, seed=0))
        torch.testing.assert_close(mine, loss, rtol=1e-5, atol=1e-6)
        errors.append(((found - exact).norm() / exact.norm()).item())
    assert errors[1] < 0.7 * errors[0] and errors[1] < 0.15
