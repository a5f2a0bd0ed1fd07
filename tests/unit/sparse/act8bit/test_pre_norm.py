"""Layers with the LayerNorm in front: RoBERTa's, against their own stock code and dense autograd."""

import pytest
import torch
from transformers import RobertaPreLayerNormConfig, RobertaPreLayerNormForSequenceClassification

from keepfrac.adapters.surgery import adapted, attach, freeze_but
from keepfrac.measurement.costs import saved_storages
from keepfrac.models.anatomy import anatomy
from keepfrac.models.targets import targets_of
from keepfrac.prune.structure import ROLES
from keepfrac.sparse.act8bit.calls import OUTPUT
from tests.unit.sparse.act8bit.nets import FAMILIES, KERNELS, batch, converted, error, gradients, network

FAMILIES["pre_norm"] = (RobertaPreLayerNormConfig, RobertaPreLayerNormForSequenceClassification)
RAGGED = {"rows": 5, "length": 17, "lengths": [17, 9, 17, 1, 4]}


def net_(**config):
    return network("pre_norm", **config)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("context", ["save", "recompute"])
@pytest.mark.parametrize("skip", [False, True])
def test_keep_all_and_store_exactly_is_autograd(kernels, context, skip):
    data, dense, net = batch(**RAGGED), net_(), net_()
    converted(net, context=context, kernels=kernels, skip_zero_rows=skip)
    (loss, want), (mine, got) = gradients(dense, data), gradients(net, data)
    assert abs(loss - mine) < 1e-6 and error(got, want) < 1e-6


@pytest.mark.parametrize("p", [0.0, 0.2])
def test_gradcheck_in_float64(p):
    net = net_(p=p, width=4, heads=2, inner=5, layers=1).double()
    handle = converted(net)
    (layer,) = handle.layers.values()
    state, mask = handle.rng_state(), torch.tensor([[1, 1], [1, 0]])
    x = torch.randn(2, 2, 4, dtype=torch.float64, requires_grad=True)

    def run(x, *_):
        handle.set_rng_state(state)
        return layer(x, mask)

    assert torch.autograd.gradcheck(run, (x, *layer.parameters()), fast_mode=True)


def test_dropout_drops_its_share_and_the_residual_stays():
    net = net_(p=0.5, layers=1)
    handle = converted(net)
    (layer,) = handle.layers.values()
    with torch.no_grad():  # the sub-layers give 1 everywhere
        for linear in (layer.attention.output.dense, layer.output.dense):
            linear.weight.zero_()
            linear.bias.fill_(1.0)
    x = torch.randn(20, 30, 96)
    added = layer(x) - x
    share = [(added.round() == value).double().mean().item() for value in (0, 2, 4)]
    assert share == pytest.approx([0.25, 0.5, 0.25], abs=0.02)
    assert OUTPUT == 0 and not torch.equal(layer(x) - x, added)


def test_there_and_back():
    data, dense, net = batch(), net_(), net_()
    classes = [type(module) for module in net.modules()]
    handle = converted(net, 0.4, store="8bit")
    assert net.state_dict().keys() == dense.state_dict().keys()
    net.eval(), dense.eval()
    assert torch.equal(net(**data).logits, dense(**data).logits)
    net.train(), dense.train()
    gradients(net, data)
    assert handle.kept()["of"].endswith("12 linears") and 0.2 < handle.kept()["achieved"] <= 0.42
    handle.restore()
    assert [type(module) for module in net.modules()] == classes
    assert error(gradients(net, data)[1], gradients(dense, data)[1]) == 0


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize(("store", "limit"), [("bf16", 3e-3), ("8bit", 0.02)])
def test_what_rounding_costs(kernels, store, limit):
    data, shape = batch(rows=4, length=24), {"width": 128, "heads": 2, "inner": 256, "layers": 3}
    net = net_(**shape)
    converted(net, store=store, kernels=kernels)
    assert error(gradients(net, data)[1], gradients(net_(**shape), data)[1]) < limit


@pytest.mark.parametrize("store", ["exact", "bf16", "8bit"])
@pytest.mark.parametrize("context", ["save", "recompute"])
def test_the_accounting_is_what_is_saved(store, context):
    net = net_(p=0.1, layers=3)
    handle = converted(net, store=store, context=context)
    x = torch.randn(4, 32, 96, requires_grad=True)
    with saved_storages(net) as storages:
        for layer in net.roberta_prelayernorm.encoder.layer:
            x = layer(x)
    rows = handle.report()
    assert sum(row["bytes_kept"] for row in rows) == pytest.approx(sum(storages.values()), rel=0.01)
    assert all(row["bytes_kept"] < row["bytes_dense"] for row in rows)


@pytest.mark.parametrize("keep_frac", [0.3, 1.0])
def test_skipping_zero_rows_changes_nothing(keep_frac):
    data, found = batch(**RAGGED), []
    for skip in (False, True):
        net = net_(p=0.1)
        torch.manual_seed(3)  # the embeddings' own dropout
        converted(net, keep_frac, store="8bit", skip_zero_rows=skip)
        found.append(gradients(net, data)[1])
    assert error(*found) < 1e-6


def test_keep_frac_touches_weight_gradients_alone():
    data, net = batch(**RAGGED), net_()
    want = gradients(net_(), data)[1]
    converted(net, 0.2)
    got = gradients(net, data)[1]
    layers = anatomy(net).layers
    linear = {f"{path}.weight" for layer in layers for path in layer.linears}
    others = want.keys() - linear
    assert len(linear) == 12 and others
    assert error({k: got[k] for k in others}, {k: want[k] for k in others}) < 1e-6
    assert error({k: got[k] for k in linear}, {k: want[k] for k in linear}) > 1e-3


def test_low_rank_updates():
    nets = []
    for _ in range(2):
        net = net_()
        attach(net, targets_of(net, ROLES), 4, 2.0)
        for number, one in enumerate(adapted(net).values()):
            torch.nn.init.normal_(next(iter(one.parts())).u, std=0.1, generator=torch.Generator().manual_seed(number))
        freeze_but(net, ("classifier",))
        for ours, theirs in zip(net.parameters(), (nets[0] if nets else net).parameters(), strict=True):
            ours.data.copy_(theirs.data)
        nets.append(net)
    converted(nets[1])
    data = batch(**RAGGED)
    assert error(gradients(nets[1], data)[1], gradients(nets[0], data)[1]) < 1e-6
