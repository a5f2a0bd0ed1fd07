"""Modules that save bits in place of numbers: ReLU and dropout."""

import pytest
import torch
from torch import nn

from keepfrac.errors import UserError
from keepfrac.measurement.costs import saved_bytes
from keepfrac.models.activation import use_activation
from keepfrac.sparse.context import Context
from keepfrac.sparse.convert import sparsify
from keepfrac.sparse.layers.activation import PackedReLU
from keepfrac.sparse.layers.dropout import PackedDropout
from keepfrac.sparse.selection.selectors import Selector
from keepfrac.sparse.selection.site import Site
from tests.unit.sparse.nets import changed, gradients, small_batch, small_net

FAMILIES = ["bert", "roberta", "distilbert"]


def packed(inplace=False, behind=None):
    context = Context(0)
    linear = None if behind is None else Site("behind", "linear", behind, context, 0, extra_bits=1)
    site = Site("relu", "activation", Selector(0.3), context, 1)
    return changed(nn.ReLU(inplace), PackedReLU, behind=linear, site=site)


def packed_dropout(p):
    return changed(nn.Dropout(p), PackedDropout, site=Site("it", "dropout", Selector(0.3), Context(0), 0))


PAIRS = {f"relu{i}": (lambda i=i: nn.ReLU(i), lambda i=i: packed(i)) for i in (False, True)}
PAIRS |= {f"dropout{p}": (lambda p=p: nn.Dropout(p), lambda p=p: packed_dropout(p)) for p in (0.0, 0.1, 0.5, 1.0)}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_torch_bit_for_bit(pair, dtype, device):
    x, results = torch.randn(3, 8, 13, device=device).to(dtype), []
    x[0, 0, 0] = 0.0
    for make in pair:
        torch.manual_seed(3)
        leaf = x.clone().requires_grad_()
        y = make()(leaf * 2)
        y.backward(torch.linspace(-1, 1, y.numel(), device=device).view(y.shape).to(dtype))
        results.append((y.detach(), leaf.grad, torch.rand(3)))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_saves_one_bit_per_number():
    x = torch.randn(3, 8, 16, requires_grad=True)
    assert saved_bytes(nn.ReLU(), lambda: nn.functional.relu(x + 0).sum()) == 4 * x.numel()
    relu, dropout = packed(), packed_dropout(0.1)
    for module in (relu, dropout):
        assert saved_bytes(module, lambda module=module: module(x + 0).sum()) == x.numel() // 8
    assert relu.site.report()["bytes_kept"] == x.numel() // 8
    assert dropout.eval()(x) is x


def test_works_in_place():
    x = torch.randn(3, 8, 16, requires_grad=True) + 0
    y = packed(inplace=True)(x)
    assert y.data_ptr() == x.data_ptr()


def test_is_torchs_where_the_linear_behind_saves_its_input_anyway():
    x = torch.randn(3, 8, 16, requires_grad=True)
    for behind in (Selector(1.0), Selector(0.97)):  # all, and 16 of 16 columns
        relu = packed(behind=behind)
        assert saved_bytes(relu, lambda relu=relu: relu(x + 0).sum()) == 4 * x.numel()
    relu = packed().eval()
    assert saved_bytes(relu, lambda: relu(x + 0).sum()) == 4 * x.numel()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["gelu", "relu", "relu_inplace"])
def test_hidden_act_reaches_the_model_and_its_config(family, name):
    net = small_net(family)
    use_activation(net, name)
    kinds = [m for m in net.modules() if isinstance(m, nn.GELU | nn.ReLU)]
    assert len(kinds) >= 2
    assert all(isinstance(m, nn.GELU) == (name == "gelu") for m in kinds)
    assert all(getattr(m, "inplace", False) == (name == "relu_inplace") for m in kinds)
    config = net.config.to_dict()
    assert config["activation" if family == "distilbert" else "hidden_act"] == name.removesuffix("_inplace")
    net(**small_batch()).loss.backward()
    with pytest.raises(UserError, match="relu_inplace"):
        use_activation(net, "swish")


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
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
