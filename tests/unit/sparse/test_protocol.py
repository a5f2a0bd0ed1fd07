"""Every saver: attached, trained under, resumed, and taken off again."""

import pytest
import torch
from torch import nn

from keepfrac.errors import UserError
from keepfrac.sparse.act8bit import Act8bit
from keepfrac.sparse.convert import SITES, SparseActivations
from keepfrac.sparse.gradient_norms import WinnerTakeAllRows
from keepfrac.sparse.recompute import CheckpointedLayers, RecomputedActivations
from tests.unit.sparse.act8bit.nets import SETTINGS
from tests.unit.sparse.nets import gradients, small_batch, small_net

CHOSEN = {"unit": "column", "rule": "random", "norm": "l2", "scale": "none", "scope": "batch"}
CHOSEN |= {"share": 0.5, "coverage": 0, "selection_seed": 0}


def savers():
    whole = {"name": "it", "keep_frac": 1.0}
    some = {"name": "it", "keep_frac": 0.4}
    sites = [["linear"], [site for site in SITES if site != "softmax"], list(SITES)]
    yield from (SparseActivations(SparseActivations.Settings(**some, **CHOSEN, sites=one)) for one in sites)
    for change in ({"rule": "sampled"}, {"rule": "mixed"}, {"rule": "top", "coverage": 0.5}):
        yield SparseActivations(SparseActivations.Settings(**some, **CHOSEN | change, sites=["linear"]))
    for norms in (False, True):
        yield WinnerTakeAllRows(WinnerTakeAllRows.Settings(**some, gradient_norms=norms, selection_seed=0))
    yield RecomputedActivations(RecomputedActivations.Settings(**whole))
    yield CheckpointedLayers(CheckpointedLayers.Settings(**whole))
    yield Act8bit(Act8bit.Settings(**some, **SETTINGS, selection_seed=0))


def network():
    return small_net(dropout=0.1, act="relu")


def trained(net, steps=1):
    torch.manual_seed(3)
    for _ in range(steps):
        net(**small_batch()).loss.backward()
    return gradients(net)


def described(net):
    """Class and attributes of each module, but for what Transformers' own switch leaves on them."""
    left = ("checkpoint", "require_grads")
    return [(type(m), {key for key in vars(m) if not any(one in key for one in left)}) for m in net.modules()]


@pytest.mark.parametrize("number", range(len(list(savers()))))
def test_there_and_back(number):
    saver, net, dense = list(savers())[number], network(), network()
    parts = described(dense)
    parameters = [id(one) for one in net.parameters()]
    assert saver.kept() == {} and saver.report() == [] and saver.state() == {}
    saver.attach(net)
    saver.attach(net)  # nothing more
    assert [id(one) for one in net.parameters()] == parameters and list(net.state_dict()) == list(dense.state_dict())
    trained(net)
    kept = saver.kept()
    assert kept["asked"] == saver.settings.keep_frac and 0 < kept["achieved"] <= 1
    saver.detach()
    saver.detach()
    assert saver.kept() == kept and saver.state() == {}
    assert described(net) == parts
    assert net.config._attn_implementation == dense.config._attn_implementation
    net.zero_grad()
    got, want = trained(net), trained(dense)
    assert all(torch.equal(got[name], want[name]) for name in want)


@pytest.mark.parametrize("number", range(len(list(savers()))))
def test_a_resumed_run_goes_on_as_the_uninterrupted_one(number):
    whole, resumed = list(savers())[number], list(savers())[number]
    one, other = network(), network()
    whole.attach(one)
    trained(one)
    state = whole.state()
    one.zero_grad()
    want = trained(one, 2)
    resumed.attach(other)
    resumed.load_state(state)
    got = trained(other, 2)
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_hooks_on_modules_stay():
    """Gates of a pruning method sit on linears before a saver is attached."""
    net, calls = network(), []
    linear = net.bert.encoder.layer[0].output.dense
    linear.register_forward_hook(lambda *_: calls.append(1))
    saver = next(iter(savers()))
    saver.attach(net)
    trained(net)
    saver.detach()
    trained(net)
    assert len(calls) == 2 and type(linear) is nn.Linear


def test_a_linear_that_stays_dense_is_an_error_in_the_first_step():
    own = {**CHOSEN, "unit": "element", "sites": ["linear"]}
    net = network()
    SparseActivations(SparseActivations.Settings(name="it", keep_frac=0.98, **own)).attach(net)
    with torch.no_grad():
        net(**small_batch(padded=False))
    with pytest.raises(UserError, match="not be smaller"):
        net(**small_batch(padded=False))
