"""The blocks on the encoders with rotary positions and gated feed-forwards, against their own stock layers."""

import copy

import pytest
import torch

from keepfrac.errors import UserError
from keepfrac.models.anatomy import anatomy
from keepfrac.models.cut import cut
from keepfrac.models.families import FAMILIES
from keepfrac.prune.structure import LayerStructure, Structure
from keepfrac.sparse.kernels import plain
from tests.tiny import inputs, tiny
from tests.unit.sparse.act8bit.nets import KERNELS, converted, error, gradients
from tests.unit.sparse.act8bit.test_composition import gate_gradients, gated

ENCODERS = tuple(name for name, row in FAMILIES.items() if row.rotary and not row.causal)
LENGTH = 12  # longer than the windows
UNEVEN = Structure((LayerStructure((0, 2), (1, 2, 40)), LayerStructure((), tuple(range(33))), LayerStructure((3,), ())))


def encoder(family, p=0.0, **config):
    """The same weights each time, norms' among them, in train mode; p: of the dropouts inside the layers."""
    torch.manual_seed(3)
    row = FAMILIES[family]
    rates = {key: p for key in (*row.dropouts, *row.attention_dropouts) if key != "classifier_dropout"}
    net = tiny(family, **(rates | config))
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return net.train()


def batch():
    return inputs(4, LENGTH) | {"labels": torch.tensor([0, 1, 2, 1])}


def test_they_are_the_three():
    assert set(ENCODERS) == {"modernbert", "eurobert", "nomic_bert"}


@pytest.mark.parametrize("family", ENCODERS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kernels", KERNELS)
def test_keep_all_and_store_exactly_is_autograd(family, attention, kernels):
    dense, net = (encoder(family, attention=attention) for _ in range(2))
    again = attention == "eager"
    converted(net, kernels=kernels, context="recompute" if again else "save", skip_zero_rows=again)
    (loss, want), (mine, got) = (gradients(one, batch()) for one in (dense, net))
    assert abs(loss - mine) < 2e-6 and error(got, want) < 1e-5


@pytest.mark.parametrize("family", ENCODERS)
@pytest.mark.parametrize(("store", "limit"), [("bf16", 0.01), ("mixed", 0.03), ("8bit", 0.03)])
def test_what_rounding_costs(family, store, limit):
    dense, net = (encoder(family) for _ in range(2))
    converted(net, store=store)
    assert 1e-5 < error(gradients(net, batch())[1], gradients(dense, batch())[1]) < limit


@pytest.mark.parametrize("family", ENCODERS)
def test_a_cut_model(family):
    dense = cut(encoder(family), UNEVEN)
    net = copy.deepcopy(dense)
    handle = converted(net)
    got, want = gradients(net, batch())[1], gradients(dense, batch())[1]
    assert error(got, want) < 1e-5
    assert handle.kept()["of"].endswith(f"{sum(len(layer.linears) for layer in anatomy(dense).layers)} linears")


@pytest.mark.parametrize("family", ENCODERS)
@pytest.mark.parametrize("keep_frac", [0.3, 1.0])
def test_gates_and_their_gradients(family, keep_frac):
    found = []
    for late in (False, True):
        net = encoder(family)
        if late:
            converted(net, keep_frac)
        leaves, _ = gated(net)
        found.append(gate_gradients(net, leaves, batch()))
    assert error(found[1][1], found[0][1]) < 1e-5
    assert (error(found[1][0], found[0][0]) < 1e-5) == (keep_frac == 1)


@pytest.mark.parametrize("family", ENCODERS)
def test_two_steps_lower_the_loss(family):
    net = encoder(family)
    converted(net, 0.5, store="8bit", skip_zero_rows=True)
    optimizer, losses = torch.optim.AdamW(net.parameters(), 3e-3), []
    for _ in range(3):
        losses.append(gradients(net, batch())[0])
        optimizer.step()
    assert losses[2] < losses[1] < losses[0]
