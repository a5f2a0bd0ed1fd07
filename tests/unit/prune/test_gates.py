from functools import partial

import pytest
import torch

from keepfrac.errors import UserError
from keepfrac.models.cut import counts_of, encoder_layers, shape_of
from keepfrac.prune.attach import FixedGates, attach
from keepfrac.prune.constraint import AugmentedLagrangian
from keepfrac.prune.cost import MacsCost, ParamsCost, fraction, total
from keepfrac.prune.factorize import factorize_
from keepfrac.prune.gates import FAMILIES, KEPT_AT_LEAST, Gates
from keepfrac.prune.hard_concrete import open_probability
from keepfrac.prune.schedules import linear
from keepfrac.prune.select import Limits, select
from keepfrac.prune.structure import LayerStructure, Structure
from tests.tiny import inputs, tiny

NO_RANKS = tuple(f for f in FAMILIES if f != "ranks")


def gated(families=NO_RANKS, family="bert", start=0.995, seed=0):
    net = tiny(family)
    gates = Gates(counts_of(net), families, start, beta=2 / 3, limit=12.0, seed=seed)
    gates.attach(net, encoder_layers(net))
    return net, gates


def scramble(gates, scale=2.0):
    with torch.no_grad():
        for a in gates.log_alpha.values():
            a.normal_(std=scale)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_fresh_gates_leave_the_evaluated_model_as_it_was(family):
    net, gates = gated(family=family)
    with torch.no_grad():
        gates.eval()
        masked = net(**inputs()).logits
        gates.detach()
        assert torch.equal(net(**inputs()).logits, masked)
        gates.attach(net, encoder_layers(net))
        gates.train()
        scramble(gates)
        assert not torch.equal(net(**inputs()).logits, masked)


def test_noise_is_one_sample_a_step_and_repeats_from_its_seed():
    net, gates = gated(start=0.5)
    with torch.no_grad():
        first, same = net(**inputs()).logits, net(**inputs()).logits
        gates.draw()
        other = net(**inputs()).logits
    assert torch.equal(first, same) and not torch.equal(first, other)
    torch.manual_seed(99)  # the global generator has no part in it
    net2, _ = gated(start=0.5)
    net2.load_state_dict(net.state_dict())
    with torch.no_grad():
        assert torch.equal(net2(**inputs()).logits, first)


@pytest.mark.parametrize("kind", [ParamsCost, partial(MacsCost, length=7)])
def test_expected_cost_is_the_mean_cost_of_samples(kind):
    net, gates = gated()
    scramble(gates)
    cost = kind(shape_of(net))
    found = []
    for _ in range(1500):
        gates.draw()
        counts = []
        for i in range(3):
            subs = {p: gates.sub_layer(i, p) > 0 for p in ("attention", "ffn")}
            heads = int((gates.units(i, "heads") > 0).sum() * subs["attention"])
            neurons = int((gates.units(i, "neurons") > 0).sum() * subs["ffn"])
            counts.append(type(gates.counts[0])(heads, neurons))
        found.append(total(cost, counts))
    found = torch.tensor(found).float()
    assert abs(found.mean() - total(cost, gates.expected())) < 4 * found.std() / len(found) ** 0.5


def test_expected_counts_are_exact_for_gates_that_are_open_or_closed():
    _, gates = gated()
    with torch.no_grad():
        for a in gates.log_alpha.values():
            a.fill_(30.0)
        gates.log_alpha["heads/1"][:3] = -30.0
        gates.log_alpha["ffn"][2] = -30.0
    counts = [(round(c.heads.item(), 4), round(c.neurons.item(), 4)) for c in gates.expected()]
    assert counts == [(4, 48), (1, 48), (4, 0)]


def test_the_constraint_gives_every_gate_a_gradient():
    net, gates = gated()
    fraction(ParamsCost(shape_of(net)), gates.expected()).backward()
    assert all((a.grad > 0).all() for a in gates.parameters())


def test_a_closed_sub_layer_takes_its_bias_along():
    net, gates = gated(("attention", "ffn"))
    with torch.no_grad():
        for a in gates.log_alpha.values():
            a.fill_(-12.0)
    gates.eval()
    outputs = []
    for layer in encoder_layers(net):
        for path in (layer.attention_output, layer.ffn_out):
            net.get_submodule(path).register_forward_hook(lambda m, a, out: outputs.append(out))
    with torch.no_grad():
        net(**inputs())
    assert len(outputs) == 6 and all((out == 0).all() for out in outputs)


def test_frozen_gates_pass_no_gradient_and_close_what_is_not_kept():
    net, gates = gated(("heads", "neurons"))
    structure = Structure((LayerStructure((0, 1), (3,)), LayerStructure((), (1, 2)), LayerStructure((2,), ())))
    gates.freeze(structure)
    gates.train()
    net(**inputs()).logits.sum().backward()
    assert all(a.grad is None for a in gates.parameters())
    assert gates.units(0, "heads").tolist() == [1, 1, 0, 0]
    assert gates.sub_layer(1, "attention") == 0 and gates.sub_layer(1, "ffn") == 1
    gates.eval()
    assert gates.units(0, "heads").tolist() == [1, 1, 0, 0]


def test_what_is_kept_is_never_folded_as_zero():
    """P(z > 0) is above 0 also where the deterministic gate is exactly 0."""
    net = tiny()
    factorize_(net, [layer.query for layer in encoder_layers(net)], rank=5)
    gates = Gates(counts_of(net), FAMILIES, 0.995, 2 / 3, 12.0, seed=0)
    with torch.no_grad():
        for a in gates.log_alpha.values():
            a.fill_(-6.0)  # all are closed at evaluation
        gates.log_alpha["heads/0"][1] = 6.0
    assert gates.fixed().heads[0].tolist() == [0, 1, 0, 0]  # not frozen: as they are
    kept = {"query": (0, 4)}
    units = ((0, 1), (3,)), ((), (1, 2)), ((2,), ())
    gates.freeze(Structure(tuple(LayerStructure(*one, kept) for one in units)))
    fixed = gates.fixed()
    assert fixed.heads[0].tolist() == pytest.approx([KEPT_AT_LEAST, 1, 0, 0])
    for i, layer in enumerate(gates.structure.layers):
        found = {**{f: fixed.units(i, f) for f in ("heads", "neurons")}, "query": fixed.rank(i, "query")}
        wanted = {"heads": layer.heads, "neurons": layer.neurons, "query": layer.ranks["query"]}
        for name, z in found.items():
            assert tuple(z.nonzero().flatten().tolist()) == wanted[name]
            assert (z[list(wanted[name])] >= KEPT_AT_LEAST).all()
        parts = [bool(fixed.sub_layer(i, part) > 0) for part in ("attention", "ffn")]
        assert parts == [bool(layer.heads), bool(layer.neurons)]


def test_scores_nest_and_select_a_budget():
    net, gates = gated()
    scramble(gates)
    with torch.no_grad():
        gates.log_alpha["attention"][1] = -10.0
    scores = gates.scores()
    expected = open_probability(gates.log_alpha["neurons/0"], 2 / 3).double()
    for part in ("ffn", "layers"):
        expected = expected * open_probability(gates.log_alpha[part][0], 2 / 3)
    assert torch.allclose(scores.neurons[0], expected.detach())
    cost = ParamsCost(shape_of(net))
    structure = select(scores, cost, 0.4, Limits(allow_empty=True), "global")
    assert fraction(cost, structure.counts()) == pytest.approx(0.4, abs=64 / cost.dense)
    assert structure.layers[1].heads == ()


def test_gates_stay_in_fp32():
    _, gates = gated()
    scramble(gates)
    before = gates.log_alpha["ffn"].clone()
    gates.to(torch.bfloat16)
    assert gates.log_alpha["ffn"].dtype == torch.float32 and torch.equal(gates.log_alpha["ffn"], before)


def test_a_bf16_model_stays_in_bf16():
    net, _ = gated()
    net.to(torch.bfloat16)
    with torch.no_grad():
        assert net(**inputs()).logits.dtype == torch.bfloat16


def test_clamping_holds_the_limit():
    _, gates = gated()
    scramble(gates, 100.0)
    gates.clamp_()
    assert max(a.abs().max() for a in gates.parameters()) == 12.0


def test_rank_gates_need_low_rank_linears():
    with pytest.raises(UserError, match="factorise it first"):
        gated(("ranks",))
    net = tiny()
    factorize_(net, [layer.query for layer in encoder_layers(net)], rank=5)
    gates = Gates(counts_of(net), ("ranks",), 0.995, 2 / 3, 12.0, seed=0)
    gates.attach(net, encoder_layers(net))
    with torch.no_grad():
        gates.eval()
        open_ = net(**inputs()).logits
        gates.log_alpha["ranks/0/query"][2] = -12.0
        closed = net(**inputs()).logits
        net.get_submodule(encoder_layers(net)[0].query).p.weight[2] = 0
        assert not torch.equal(open_, closed)
        gates.log_alpha["ranks/0/query"][2] = 12.0
        assert torch.allclose(net(**inputs()).logits, closed, atol=1e-6)


@pytest.mark.parametrize("families", [(), ("hidden",), ("heads", "rows")])
def test_unknown_families_are_refused(families):
    with pytest.raises(UserError, match="name at least one of"):
        gated(families)


def test_a_gate_gradient_is_the_textbook_head_importance():
    """|dL/dgate| of a head is |sum of W_O * dL/dW_O| over its columns."""
    net = tiny()
    ones = [torch.ones(4, requires_grad=True) for _ in range(3)]
    handles = attach(net, encoder_layers(net), FixedGates(heads=ones))
    net(**inputs()).logits.square().sum().backward()
    for layer, gate in zip(encoder_layers(net), ones, strict=True):
        weight = net.get_submodule(layer.attention_output).weight
        reference = (weight * weight.grad).sum(0).view(4, 8).sum(1)
        assert torch.allclose(gate.grad, reference, rtol=1e-3, atol=1e-5)
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("families", [("heads", "neurons"), NO_RANKS])
def test_gates_under_the_constraint_reach_the_target(families):
    """Gates that only some of which help the loss: the cost settles at its target, the useful units stay."""
    net, gates = gated(families)
    cost, constraint = ParamsCost(shape_of(net)), AugmentedLagrangian()
    multipliers = {"params": list(constraint.parameters()), "maximize": True}
    optimizer = torch.optim.Adam([{"params": list(gates.parameters())}, multipliers], lr=0.1)
    useful = torch.arange(48) < 12
    for step in range(1200):
        optimizer.zero_grad()
        violation = fraction(cost, gates.expected()) - linear(step / 1200, 0.4, 0.05, 0.3)
        missing = sum((1 - gates.units(i, "neurons")[useful]).mean() for i in range(3))
        (missing + constraint.loss(violation)).backward()
        optimizer.step()
        gates.clamp_()
        gates.draw()
    assert fraction(cost, gates.expected()).item() == pytest.approx(0.4, abs=0.02)
    structure = select(gates.scores(), cost, 0.4, Limits(allow_empty=True), "global")
    assert fraction(cost, structure.counts()) == pytest.approx(0.4, abs=64 / cost.dense)
    assert all(set(range(12)) <= set(layer.neurons) for layer in structure.layers)
