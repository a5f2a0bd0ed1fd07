"""DistilBERT, cut models and linears held as two factors, against their own stock layers."""

import copy

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
)

from keepfrac.measurement.costs import saved_storages
from keepfrac.models.cut import counts_of, cut
from keepfrac.models.pruned import LowRankLinear
from keepfrac.prune.structure import LayerStructure, Structure
from tests.unit.sparse.act8bit.nets import KERNELS, batch, converted, error, gradients

SHAPE = {"vocab_size": 100, "max_position_embeddings": 40}
RAGGED = {"rows": 5, "length": 17, "lengths": [17, 9, 17, 1, 4]}


def distilbert(**config):
    torch.manual_seed(1)
    settings = {
        "dim": 48,
        "n_heads": 4,
        "hidden_dim": 100,
        "n_layers": 3,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "seq_classif_dropout": 0.0,
    }
    return DistilBertForSequenceClassification(DistilBertConfig(**SHAPE, **settings | config)).train()


def bert():
    torch.manual_seed(1)
    config = BertConfig(
        **SHAPE, hidden_size=48, num_attention_heads=4, intermediate_size=100, num_hidden_layers=3,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return BertForSequenceClassification(config).train()


def uneven(net):
    """Layers of different sizes; one without attention, one without feed-forward."""
    none: dict = {}
    layers = (
        LayerStructure((0, 2), (1, 2, 3, 50), none),
        LayerStructure((), tuple(range(33)), none),
        LayerStructure((1, 2, 3), (), none),
    )
    return cut(net, Structure(layers))


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("context", ["save", "recompute"])
def test_distilbert(kernels, context):
    data, dense, net = batch(**RAGGED), distilbert(), distilbert()
    converted(net, context=context, kernels=kernels)
    (loss, want), (mine, got) = gradients(dense, data), gradients(net, data)
    assert abs(loss - mine) < 1e-6 and error(got, want) < 1e-6


def test_distilbert_there_and_back():
    data, dense, net = batch(), distilbert(dropout=0.1, attention_dropout=0.1), distilbert()
    handle = converted(net, 0.4, store="8bit", skip_zero_rows=True)
    assert net.state_dict().keys() == dense.state_dict().keys()
    with saved_storages(net) as storages:
        hidden = net.base_model(data["input_ids"]).last_hidden_state
        net.pre_classifier(hidden[:, 0])
    assert hidden.untyped_storage().data_ptr() not in storages
    gradients(net, data)
    assert handle.kept()["of"].endswith("18 linears") and 0.3 < handle.kept()["achieved"] <= 0.42
    handle.restore()
    assert not any(module._forward_pre_hooks for module in net.modules())
    assert error(gradients(net, data)[1], gradients(distilbert(), data)[1]) == 0


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("family", [bert, distilbert])
def test_a_cut_model(kernels, family):
    data, dense = batch(**RAGGED), uneven(family())
    net = copy.deepcopy(dense)
    handle = converted(net, kernels=kernels)
    (loss, want), (mine, got) = gradients(dense, data), gradients(net, data)
    assert abs(loss - mine) < 1e-6 and error(got, want) < 1e-6
    assert counts_of(net) == counts_of(dense)
    assert "12 linears" in handle.kept()["of"] and handle.kept()["achieved"] == 1


@pytest.mark.parametrize("store", ["8bit", "exact"])
def test_the_accounting_of_a_cut_model(store):
    net = uneven(bert())
    handle = converted(net, 0.3, store=store)
    x = torch.randn(4, 32, 48, requires_grad=True)
    with saved_storages(net) as storages:
        y = x
        for layer in net.bert.encoder.layer:
            y = layer(y)
    kept = sum(row["bytes_kept"] for row in handle.report())
    own_input = x.nbytes if store == "exact" else 0
    assert kept + own_input == pytest.approx(sum(storages.values()), rel=0.01)
    assert all(row["bytes_dense"] > 0 for row in handle.report())
    y.sum().backward()


@pytest.mark.parametrize("keep_frac", [1.0, 0.3])
def test_linears_held_as_two_factors(keep_frac):
    """The gradient of their product goes on to both factors."""
    data, dense = batch(**RAGGED), bert()
    for path in ("0.attention.self.query", "1.output.dense"):
        parent, _, name = f"bert.encoder.layer.{path}".rpartition(".")
        linear = dense.get_submodule(parent).get_submodule(name)
        setattr(dense.get_submodule(parent), name, LowRankLinear(linear.in_features, 48, 5, bias=True))
    net = copy.deepcopy(dense)
    handle = converted(net, keep_frac)
    got, want = gradients(net, data)[1], gradients(dense, data)[1]
    if keep_frac == 1:
        assert error(got, want) < 1e-6
    else:
        factors = {name for name in want if name.endswith(("p.weight", "q.weight"))}
        assert len(factors) == 4 and all(got[name].isfinite().all() for name in factors)
        weights = {name for name in want if "encoder" in name and want[name].ndim == 2}
        others = want.keys() - weights
        assert error({k: got[k] for k in others}, {k: want[k] for k in others}) < 1e-6
    kept = sum(row["bytes_kept"] for row in handle.report())
    with saved_storages(net) as storages:
        loss = net(**data).loss
    assert kept < sum(storages.values())
    loss.backward()
