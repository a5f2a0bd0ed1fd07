import torch

from keepfrac.models.cut import encoder_layers
from keepfrac.prune.scores import magnitude, random
from tests.tiny import tiny


def test_magnitude_is_the_norm_of_what_a_unit_owns():
    net = tiny()
    layer = net.bert.encoder.layer[1]
    found = magnitude(net, encoder_layers(net))
    attention, rows = layer.attention, slice(16, 24)
    owned = [attention.self.query.weight[rows], attention.self.key.weight[rows], attention.self.value.weight[rows]]
    owned.append(attention.output.dense.weight[:, rows])
    assert torch.isclose(found.heads[1][2], torch.cat([w.flatten() for w in owned]).norm())
    owned = torch.cat([layer.intermediate.dense.weight[5], layer.output.dense.weight[:, 5]])
    assert torch.isclose(found.neurons[1][5], owned.norm())


def test_random_scores_are_their_seed():
    net = tiny()
    state = torch.get_rng_state()
    first, second, other = (random(net, encoder_layers(net), seed) for seed in (1, 1, 2))
    assert torch.equal(first.neurons[2], second.neurons[2]) and not torch.equal(first.heads[0], other.heads[0])
    assert torch.equal(torch.get_rng_state(), state)
