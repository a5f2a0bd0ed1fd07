"""A cut model has names too, None where there is nothing, and is trained sparsely like any other."""

import pytest
import torch

from keepfrac.models.activation import use_activation
from keepfrac.models.anatomy import anatomy
from keepfrac.models.cut import counts_of, cut, encoder_layers
from keepfrac.prune.factorize import factorize_
from keepfrac.prune.structure import LayerStructure, Structure
from keepfrac.sparse.convert import sparsify
from keepfrac.sparse.selection.selectors import Selector
from tests.tiny import inputs, tiny

UNEVEN = Structure((LayerStructure((1, 3), (0, 5, 9)), LayerStructure((), tuple(range(48))), LayerStructure((0,), ())))


def small(family, low_rank=False):
    net = tiny(family)
    if low_rank:
        factorize_(net, [path for layer in encoder_layers(net) for path in layer.linears], rank=6)
    return cut(net, UNEVEN if not low_rank else Structure.full(counts_of(net)))


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_what_was_removed_has_no_name(family):
    net = small(family)
    first, second, third = anatomy(net).layers
    assert [len(layer.linears) for layer in (first, second, third)] == [6, 2, 4]
    assert second.query is None and second.attention is None and second.ffn_in and second.activation
    assert third.ffn_out is None and third.activation is None and third.attention
    assert [layer.num_heads for layer in (first, second, third)] == [2, 0, 1]
    assert all(len(layer.layer_norms) == 2 for layer in (first, second, third))
    for path in first.linears + second.linears + third.linears:
        assert isinstance(net.get_submodule(path), torch.nn.Linear)


@pytest.mark.parametrize("sites", [("linear",), ("linear", "attention", "layer_norm"), ("linear", "softmax")])
@pytest.mark.parametrize("low_rank", [False, True])
@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_sparse_backward_of_everything_is_the_dense_one(family, low_rank, sites):
    dense, net = (small(family, low_rank) for _ in range(2))
    net.load_state_dict(dense.state_dict())
    sparsified = sparsify(net, sites, Selector(1.0), seed=0)
    for one in (dense, net):
        one.train()
        one.config.hidden_dropout_prob = 0
        for module in one.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        one(**inputs()).logits.square().sum().backward()
    grads = dict(dense.named_parameters())
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(parameter.grad, grads[name].grad, rtol=1e-4, atol=1e-5)
    assert not sparsified.fallbacks()


def test_a_low_rank_linear_is_two_sites():
    net = small("bert", low_rank=True)
    sparsified = sparsify(net, ("linear",), Selector(0.5), seed=0)
    net.train()(**inputs()).logits.sum().backward()
    layer = [row["site"] for row in sparsified.report() if ".layer.0." in row["site"]]
    assert sum(site.endswith(".q") for site in layer) == 6
    assert sparsified.kept()["achieved"] == pytest.approx(0.5, abs=0.06)


def test_the_activation_of_what_is_left_is_replaced():
    net = small("bert")
    use_activation(net, "relu")
    assert net(**inputs()).logits.isfinite().all()
