import copy

import pytest
import torch
from torch import nn

from keepfrac.errors import UserError
from keepfrac.measurement.costs import saved_storages
from keepfrac.models.pruned import LowRankLinear
from keepfrac.sparse.recompute import recompute_activations
from tests.tiny import stock


def network(family="bert"):
    return stock(family, hidden=16, heads=2, inner=48, dropout=0.1, vocab_size=30).base_model


def gradients(net, bf16=False):
    torch.manual_seed(1)  # dropout
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16), saved_storages(net) as storages:
        loss = net(torch.arange(10).view(2, 5)).last_hidden_state.float().square().mean()
    net.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}, sum(storages.values())


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_gradients_are_the_same_and_the_activations_output_is_not_saved(family, bf16):
    net = network(family)
    names = list(net.state_dict())
    dense, dense_bytes = gradients(copy.deepcopy(net), bf16)
    handle = recompute_activations(net)
    assert list(net.state_dict()) == names
    own, own_bytes = gradients(net, bf16)
    assert all(torch.equal(own[name], dense[name]) for name in dense)
    assert dense_bytes - own_bytes == 2 * 10 * 48 * (2 if bf16 else 4)
    handle.restore()
    again, again_bytes = gradients(net, bf16)
    assert again_bytes == dense_bytes and all(torch.equal(again[name], dense[name]) for name in dense)
    path = "transformer.layer.0.ffn.lin2" if family == "distilbert" else "encoder.layer.0.output.dense"
    assert type(net.get_submodule(path)) is nn.Linear


def test_two_factors():
    net = network()
    factored = LowRankLinear(48, 16, 4, bias=True)
    net.encoder.layer[0].output.dense = factored
    dense, _ = gradients(copy.deepcopy(net))
    handle = recompute_activations(net)
    own, _ = gradients(net)
    assert all(torch.equal(own[name], dense[name]) for name in dense)
    handle.restore()
    assert type(factored) is LowRankLinear


def test_what_it_cannot_change_stays_whole():
    net = network()
    net.encoder.layer[1].intermediate.intermediate_act_fn = nn.PReLU()
    with pytest.raises(UserError, match=r"layer\.1.*PReLU"):
        recompute_activations(net)
    assert type(net.encoder.layer[0].output.dense) is nn.Linear
