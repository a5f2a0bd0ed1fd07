import pytest
import torch
from torch import nn

from keepfrac.errors import UserError
from keepfrac.measurement.costs import saved_bytes
from keepfrac.sparse.context import Context
from keepfrac.sparse.convert import sparsify
from keepfrac.sparse.layers.dropout import PackedDropout
from keepfrac.sparse.selection.selectors import Selector
from keepfrac.sparse.selection.site import Site
from tests.unit.sparse.nets import changed, gradients, small_batch, small_net


def packed(p):
    return changed(nn.Dropout(p), PackedDropout, site=Site("it", "dropout", Selector(0.3), Context(0), 0))


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_torch_bit_for_bit(p, dtype, device):
    x, results = torch.randn(3, 8, 13, device=device).to(dtype), []
    for module in (nn.Dropout(p), packed(p)):
        torch.manual_seed(3)
        leaf = x.clone().requires_grad_()
        y = module(leaf)
        y.backward(torch.linspace(-1, 1, y.numel(), device=device).view(y.shape).to(dtype))
        results.append((y.detach(), leaf.grad, torch.rand(3)))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_saves_one_bit_per_number():
    x = torch.randn(3, 8, 16, requires_grad=True)
    module = packed(0.1)
    assert saved_bytes(module, lambda: module(x + 0).sum()) == x.numel() // 8
    assert module.eval()(x) is x


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_a_model_keeps_its_gradients_and_saves_less(family, attention):
    dense, net = (small_net(family, attention, dropout=0.1) for _ in range(2))
    batch = small_batch()
    handle = sparsify(net, ("dropout",), Selector(0.3), seed=0)
    for model in (dense, net):
        torch.manual_seed(2)
        model(**batch).loss.backward()
    for name, gradient in gradients(dense).items():
        assert torch.equal(gradients(net)[name], gradient), name
    assert handle.kept()["achieved"] == 1.0
    assert saved_bytes(net, lambda: net(**batch).loss) < saved_bytes(dense, lambda: dense(**batch).loss)


def test_a_model_without_dropout_is_an_error():
    with pytest.raises(UserError, match="no dropout"):
        sparsify(small_net(dropout=0.0), ("dropout",), Selector(0.3), seed=0)
