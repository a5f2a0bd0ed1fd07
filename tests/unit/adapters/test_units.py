"""Heads and neurons of models with updates: slicing equals masking, U, V and S2 included, in every family."""

import pytest
import torch
from torch import nn

from keepfrac.adapters.selection import select_positions
from keepfrac.adapters.surgery import adapted, attach, detach, part_of_weight, reattach
from keepfrac.adapters.units import cut_updates, has_update, unit_scores
from keepfrac.models import families as table
from keepfrac.models.cut import counts_of, cut, encoder_layers
from keepfrac.models.targets import targets_of
from keepfrac.prune import attach as hooks
from keepfrac.prune.attach import FixedGates, gates_of
from keepfrac.prune.coefficients import Coefficients
from keepfrac.prune.cost import MacsCost, fraction
from keepfrac.prune.masks import num_kept
from keepfrac.prune.structure import LayerCounts, LayerStructure, ModelShape, Structure
from tests.tiny import DECODERS, inputs, tiny

ROLES = ("query", "key", "value", "attention_output", "ffn_in", "ffn_out")
GATED = (*ROLES, "ffn_gate")


FAMILIES = ("bert", "roberta", *DECODERS)


def tuned(net, roles, rank=3, sparse=20):
    """The model with updates that are not zero."""
    targets, draw = targets_of(net, roles), torch.Generator().manual_seed(1)
    parts = {target: part_of_weight(net.get_submodule(target.path), target) for target in targets}
    positions = {t: select_positions(w, sparse, "random", rank, draw) for t, w in parts.items()}
    attach(net, targets, rank, 2.0, positions=positions)
    for own in adapted(net).values():
        for part in own.parts():
            nn.init.normal_(part.u, std=0.2), nn.init.normal_(part.values, std=0.5)
    return net


def structure_of(net) -> Structure:
    units = int(counts_of(net)[0].heads)
    some = LayerStructure((0, units - 1), tuple(range(0, 48, 2)))
    fewer = LayerStructure((1,), tuple(range(5)))
    return Structure((some, fewer, some))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("folded", [False, True])
def test_slicing_equals_masking(family, folded):
    net = tuned(tiny(family), GATED if table.FAMILIES[family].ffn_gate else ROLES)
    layers, counts, structure = encoder_layers(net), counts_of(net), structure_of(net)
    gates = gates_of(structure, counts)
    if folded:
        scale = lambda z: z * torch.rand(len(z), generator=torch.Generator().manual_seed(2)).add(0.5)  # noqa: E731
        gates = FixedGates([scale(z) for z in gates.heads], [scale(z) for z in gates.neurons])
    handles = hooks.attach(net, layers, gates)
    with torch.no_grad():
        masked = net(**inputs()).logits
    for handle in handles:
        handle.remove()
    updates = detach(net)
    small = cut(net, structure, gates if folded else None, merge=False)
    reattach(small, cut_updates(updates, layers, counts, structure, gates if folded else None), 0.0)
    with torch.no_grad():
        torch.testing.assert_close(small.eval()(**inputs()).logits, masked, rtol=0, atol=1e-5)
    values = [own.parts()[0].values for own in adapted(small).values()]
    assert sum(len(one) for one in values if one is not None) < 20 * len(adapted(small))


def test_the_rank_falls_with_a_linear_that_is_narrower_than_it():
    net = tuned(tiny(), ("ffn_in",), rank=20)
    structure = Structure((LayerStructure((0,), tuple(range(6))),) * 3)
    (first, *_) = cut_updates(detach(net), encoder_layers(net), counts_of(net), structure, None).values()
    assert first["ffn_in"].rank == 6


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_sums_over_what_a_unit_owns(family):
    net = tuned(tiny(family), ("query", "value", "ffn_out"))
    layers = encoder_layers(net)
    heads, neurons = unit_scores(net, layers, with_weight=False)
    with torch.no_grad():
        deltas = {path: own.oriented(own.delta()).abs() for path, own in adapted(net).items() if ".0." in path}
    layer = layers[0]
    torch.testing.assert_close(neurons[0], deltas[layer.ffn_out].sum(0))
    wide, narrow = layer.unit_width, layer.head_dim
    query = deltas[layer.query][: wide * len(heads[0])].sum(1)
    value = deltas[layer.value][-narrow * len(heads[0]) :].sum(1)
    torch.testing.assert_close(heads[0], query.view(-1, wide).sum(1) + value.view(-1, narrow).sum(1))
    whole, _ = unit_scores(detach(net) and net, layers, with_weight=True)
    assert whole[0].min() > 0 and has_update({layer.query: 1}, layers, "heads")
    assert not has_update({layer.query: 1}, layers, "neurons")


@pytest.mark.parametrize(("heads", "neurons", "less"), [(0.75, 0.75, 0.250), (0.75, 0.6, 0.347), (0.75, 1, 0.088)])
def test_the_papers_shares_of_bert_bases_macs(heads, neurons, less):
    shape = ModelShape(12, 768, 12, 64, 3072)
    counts = LayerCounts(num_kept(heads, 12), num_kept(neurons, 3072))
    assert 1 - fraction(MacsCost(shape, 128), [counts] * 12) == pytest.approx(less, abs=5e-4)


def test_coefficients_scale_learn_and_are_folded():
    net = tiny()
    layers, counts = encoder_layers(net), counts_of(net)
    coefficients = Coefficients(counts)
    handles = hooks.attach(net, layers, coefficients)
    net(**inputs()).logits.sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in coefficients.parameters())
    assert coefficients.l1("heads").item() == 12 and coefficients.l1("neurons").item() == 3 * 48
    for p in coefficients.parameters():
        nn.init.uniform_(p, -1, 1)
    structure = structure_of(net)
    coefficients.freeze(structure)
    with torch.no_grad():
        masked = net(**inputs()).logits
        small = cut(net, structure, coefficients.fixed())
        torch.testing.assert_close(small(**inputs()).logits, masked, rtol=0, atol=1e-5)
    assert len(handles) and not coefficients.units(0, "heads").requires_grad
