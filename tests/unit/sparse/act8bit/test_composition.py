"""The blocks under what other methods put onto a layer: low-rank updates, gates; against dense autograd."""

import copy

import pytest
import torch

from keepfrac.adapters.surgery import adapted, attach, freeze_but
from keepfrac.errors import UserError
from keepfrac.measurement.costs import saved_storages
from keepfrac.models.cut import encoder_layers
from keepfrac.models.targets import targets_of
from keepfrac.prune import attach as gating
from keepfrac.prune.structure import ROLES
from keepfrac.sparse.act8bit import weight_gradients
from keepfrac.tensors.surgery import find
from tests.unit.sparse.act8bit.nets import KERNELS, RAGGED, batch, converted, error, gradients, network
from tests.unit.sparse.act8bit.test_cut import with_factors

QUERY_VALUE = ("query", "value")


def tuned(wanted=QUERY_VALUE, sparse=0, head=True, **config):
    """A network with updates that are not zero, and everything else frozen but the classifier."""
    net, torch_state = network(**config), torch.get_rng_state()
    targets = targets_of(net, wanted)
    generator = torch.Generator().manual_seed(5)
    positions = None
    if sparse:
        sizes = [find(net, target.path).weight.numel() for target in targets]
        positions = {t: torch.randperm(n, generator=generator)[:sparse] for t, n in zip(targets, sizes, strict=True)}
    attach(net, targets, 4, 2.0, positions=positions)
    with torch.no_grad():
        for one in adapted(net).values():
            for name, parameter in one.updates.named_parameters():
                parameter.normal_(std=0.3 if "values" in name else 0.1, generator=generator)
    freeze_but(net, ("classifier",) if head else ())
    torch.set_rng_state(torch_state)
    return net.train()


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("context", ["save", "recompute"])
@pytest.mark.parametrize(("wanted", "sparse"), [(QUERY_VALUE, 0), (ROLES, 0), (ROLES, 30)])
@pytest.mark.parametrize("family", ["bert", "roberta-prelayernorm"])
def test_low_rank_updates(kernels, context, wanted, sparse, family):
    data = batch(**RAGGED)
    dense, net = (tuned(wanted, sparse, family=family) for _ in range(2))
    converted(net, context=context, kernels=kernels, skip_zero_rows=True)
    (loss, want), (mine, got) = gradients(dense, data), gradients(net, data)
    assert len(want) == 2 * len(wanted) * (3 if sparse else 2) + (2 if family == "bert" else 4)  # and the head
    assert abs(loss - mine) < 1e-6 and error(got, want) < 1e-6


def test_low_rank_updates_in_bfloat16_are_as_near_as_the_stock_ones():
    data, want = batch(**RAGGED), gradients(tuned(ROLES), batch(**RAGGED))[1]
    errors = {}
    for name in ("stock", "late"):
        net = tuned(ROLES)
        if name == "late":
            converted(net, store="8bit")
        with torch.autocast("cpu", torch.bfloat16):
            loss = net(**data).loss
        loss.backward()
        found = {key: p.grad for key, p in net.named_parameters() if p.grad is not None}
        errors[name] = error(found, want)
    assert errors["late"] < 2 * errors["stock"] + 0.03


def test_no_gradient_of_a_frozen_weight_is_computed(monkeypatch):
    shapes = []
    original = weight_gradients.add_outer

    def recorded(total, g, x):
        shapes.append(tuple(total.shape))
        original(total, g, x)

    monkeypatch.setattr(weight_gradients, "add_outer", recorded)
    net = tuned(ROLES)
    converted(net, 0.5)
    gradients(net, batch())
    assert len(shapes) == 2 * 6 * 2 and all(min(shape) == 4 for shape in shapes)


@pytest.mark.parametrize("store", ["exact", "8bit"])
def test_what_no_update_needs_is_not_stored(store):
    """With updates on query and value alone: not the context, and in the first layer not the input."""
    kept = {}
    for name, net in {"whole": network(), "tuned": tuned(), "tuned all": tuned(ROLES)}.items():
        handle = converted(net, store=store)
        x = torch.randn(4, 32, 96, requires_grad=name == "whole")
        with saved_storages(net) as storages:
            for layer in net.bert.encoder.layer:
                x = layer(x)
        kept[name] = sum(row["bytes_kept"] for row in handle.report())
        own = 4 * 32 * 96 * 4 if store == "exact" else 0  # the input itself, saved as it is
        assert kept[name] + own == pytest.approx(sum(storages.values()), rel=0.01)
    context = 2 * 4 * 32 * 96 * (4 if store == "exact" else 1)
    assert kept["tuned all"] == pytest.approx(kept["whole"], rel=0.01)
    assert kept["whole"] - kept["tuned"] == pytest.approx(context, rel=0.1)


def test_updates_learn_from_few_rows_without_bias():
    net = tuned(ROLES, p=0.0)
    data = batch(rows=8, length=20)
    want = gradients(tuned(ROLES), data)[1]
    handle = converted(net, 0.3, skip_zero_rows=True)
    total = None
    for _ in range(60):
        got = gradients(net, data)[1]
        total = got if total is None else {key: total[key] + got[key] for key in got}
    one = error(got, want)
    assert error({key: value / 60 for key, value in total.items()}, want) < 0.35 * one
    assert 0 < handle.kept()["achieved"] <= 0.35


def test_masks_that_hold_for_weight_and_update():
    """merge=sparse_by_construction."""
    data, nets = batch(**RAGGED), (tuned(ROLES), tuned(ROLES))
    for net in nets:
        for one in adapted(net).values():
            one.reserve_mask()
            one.constrain(torch.arange(one.weight.numel()).view_as(one.weight) % 3 > 0)
    converted(nets[1])
    assert error(gradients(nets[1], data)[1], gradients(nets[0], data)[1]) < 1e-6


def test_updates_of_two_factors():
    torch.manual_seed(2)
    net = with_factors(network())
    attach(net, targets_of(net, ("query", "ffn_out")), 2, 2.0)
    for one in adapted(net).values():
        torch.nn.init.normal_(next(iter(one.parts())).u, std=0.1)
    freeze_but(net, ("classifier",))
    dense = copy.deepcopy(net)
    converted(net)
    data = batch(**RAGGED)
    assert error(gradients(net, data)[1], gradients(dense, data)[1]) < 1e-6


def test_dropout_of_an_updates_input_is_refused():
    net = network()
    attach(net, targets_of(net, QUERY_VALUE), 4, 2.0, dropout=0.1)
    with pytest.raises(UserError, match=r"method\.dropout=0"):
        converted(net)


def gated(net, learn=True, drop=frozenset()):
    """Gates on all that can have one; those of dropped layers are closed."""
    generator = torch.Generator().manual_seed(7)
    layers = encoder_layers(net)
    counts = gating.read_counts(net, layers)

    def some(size):
        return (0.2 + torch.rand(size, generator=generator)).requires_grad_(learn)

    heads, neurons = [some(c.heads) for c in counts], [some(c.neurons) for c in counts]
    ranks = [{role: some(rank) for role, rank in c.ranks.items()} for c in counts]
    parts = {name: some(len(layers)) for name in ("attention", "ffn")}
    for layer in drop:
        for values in parts.values():
            values.data[layer] = 0.0
    values = gating.FixedGates(heads, neurons, **parts, ranks=ranks, drop=drop)
    handles = gating.attach(net, layers, values)
    leaves = [*heads, *neurons, *parts.values(), *(z for by_role in ranks for z in by_role.values())]
    return dict(enumerate(leaves)), handles


def gate_gradients(net, leaves, data):
    """Gradients of the parameters, and of the gates."""
    for leaf in leaves.values():
        leaf.grad = None
    found = gradients(net, data)[1]
    return found, {key: leaf.grad for key, leaf in leaves.items() if leaf.grad is not None}


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("context", ["save", "recompute"])
@pytest.mark.parametrize("factors", [False, True])
def test_gates_and_their_gradients(kernels, context, factors):
    data, found = batch(**RAGGED), []
    for late in (False, True):
        net = network(attn_implementation="sdpa")
        net = with_factors(net) if factors else net
        if late:
            converted(net, context=context, kernels=kernels, skip_zero_rows=True)
        leaves, _ = gated(net)
        found.append(gate_gradients(net, leaves, data))
    (want, want_gates), (got, got_gates) = found
    assert len(want_gates) == (8 if factors else 6)
    assert error(got, want) < 1e-6 and error(got_gates, want_gates) < 1e-6


@pytest.mark.parametrize("keep_frac", [0.2, 1.0])
def test_weight_gradients_gates_go_over_all_rows(keep_frac):
    """Whatever share of rows forms the weights' gradients, and with 8 bits they are as near as dX."""
    data = batch(**RAGGED)
    net = network()
    want = gate_gradients(net, gated(net)[0], data)[1]
    for store, limit in (("exact", 1e-6), ("8bit", 0.02)):
        net = network()
        converted(net, keep_frac, store=store)
        assert error(gate_gradients(net, gated(net)[0], data)[1], want) < limit


def test_gates_that_are_only_values_store_nothing_more():
    kept = []
    for gates in (False, True):
        net = network()
        handle = converted(net, store="8bit")
        if gates:
            gated(net, learn=False)
        with saved_storages(net) as storages:
            loss = net(**batch()).loss
        loss.backward()
        kept.append((sum(row["bytes_kept"] for row in handle.report()), sum(storages.values())))
    (bytes_kept, saved), (with_gates, saved_with) = kept
    assert bytes_kept == with_gates and saved_with - saved < 2 * (96 + 200) * 4 + 4096


def test_a_dropped_layer_is_the_identity():
    data = batch(**RAGGED)
    net = network(layers=3)
    leaves, handles = gated(net, drop=frozenset([1]))
    want = gate_gradients(net, leaves, data)[0]
    for handle in handles:
        handle.remove()
    twin = network(layers=3)
    converted(twin)
    leaves, handles = gated(twin, drop=frozenset([1]))
    got = gate_gradients(twin, leaves, data)[0]
    shared = {name for name in want if "layer.1." not in name}
    assert error(got, want, shared) < 1e-6
    assert not any(got[k].any() for k in got if "layer.1." in k)
    for handle in handles:
        handle.remove()
    assert error(gradients(twin, data)[1], gradients(network(layers=3), data)[1]) < 1e-6


def test_gates_on_updates():
    """DSEE's: coefficients of heads and neurons over low-rank updates."""
    data, found = batch(**RAGGED), []
    for late in (False, True):
        net = tuned(ROLES)
        if late:
            converted(net)
        leaves, _ = gated(net)
        found.append(gate_gradients(net, leaves, data))
    assert error(found[1][0], found[0][0]) < 1e-6 and error(found[1][1], found[0][1]) < 1e-6
