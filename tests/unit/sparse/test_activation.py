import pytest
import torch
from torch import nn

from keepfrac.errors import UserError
from keepfrac.measurement.costs import saved_bytes
from keepfrac.models.activation import use_activation
from keepfrac.sparse.context import Context
from keepfrac.sparse.layers.activation import PackedReLU
from keepfrac.sparse.selection.selectors import Selector
from keepfrac.sparse.selection.site import Site
from tests.unit.sparse.nets import changed, small_batch, small_net


def packed(inplace=False, behind=None):
    context = Context(0)
    linear = None if behind is None else Site("behind", "linear", behind, context, 0, extra_bits=1)
    site = Site("relu", "activation", Selector(0.3), context, 1)
    return changed(nn.ReLU(inplace), PackedReLU, behind=linear, site=site)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_torch_bit_for_bit(inplace, dtype, device):
    x = torch.randn(3, 8, 13, device=device).to(dtype)
    x[0, 0, 0] = 0.0
    results = []
    for module in (nn.ReLU(inplace), packed(inplace)):
        leaf = x.clone().requires_grad_()
        y = module(leaf * 2)
        y.backward(torch.linspace(-1, 1, y.numel(), device=device).view(y.shape).to(dtype))
        results.append((y.detach(), leaf.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_saves_one_bit_per_number():
    x = torch.randn(3, 8, 16, requires_grad=True)
    assert saved_bytes(nn.ReLU(), lambda: nn.functional.relu(x + 0).sum()) == 4 * x.numel()
    relu = packed()
    assert saved_bytes(relu, lambda: relu(x + 0).sum()) == x.numel() // 8
    assert relu.site.report()["bytes_kept"] == x.numel() // 8


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


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
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
