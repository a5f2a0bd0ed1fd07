"""The blocks on the encoders with rotary positions and gated feed-forwards, against their own stock layers."""

import copy

import pytest
import torch

from keepfrac.adapters.surgery import adapted, attach, freeze_but
from keepfrac.errors import UserError
from keepfrac.measurement.costs import saved_storages
from keepfrac.models.anatomy import anatomy
from keepfrac.models.cut import cut
from keepfrac.models.families import FAMILIES
from keepfrac.models.targets import targets_of
from keepfrac.prune.structure import LayerStructure, Structure
from keepfrac.tensors.surgery import find
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


@pytest.mark.parametrize("family", ["eurobert", "nomic_bert"])
def test_gradcheck_in_float64(family):
    """With dropout: the same masks at every call. ModernBERT's positions are float32 whatever it is."""
    net = encoder(family, p=0.2, layers=1).double()
    handle = converted(net)
    x = torch.randn(2, 3, 32, dtype=torch.float64, requires_grad=True)
    mask = torch.ones(2, 1, 3, 3, dtype=torch.bool)
    mask[1, :, :, 2] = False
    positions = net.base_model.rotary_emb(x, torch.arange(3)[None])
    assert _gradcheck(handle, x, attention_mask=mask, position_embeddings=positions)


def test_gradcheck_of_the_dropout_behind_the_activation():
    """In a layer without attention, and so without positions; nothing but that dropout is there."""
    dense = encoder("modernbert", p=0.2, layers=1, layer_types=["full_attention"])
    net = cut(dense, Structure((UNEVEN.layers[1],))).train().double()
    handle = converted(net)
    assert _gradcheck(handle, torch.randn(2, 3, 32, dtype=torch.float64, requires_grad=True))


def _gradcheck(handle, x, **named):
    (layer,) = handle.layers.values()
    state = handle.rng_state()

    def run(x, *_):
        handle.set_rng_state(state)
        return layer(x, **named)

    assert not torch.equal(run(x), layer.eval()(x, **named)), "no dropout"
    layer.train()
    return torch.autograd.gradcheck(run, (x, *layer.parameters()), fast_mode=True)


@pytest.mark.parametrize("family", ENCODERS)
def test_leaving_out_rows_of_zeros_draws_the_same_masks(family):
    found = []
    for skip in (False, True):
        net = encoder(family, p=0.2)
        converted(net, skip_zero_rows=skip)
        torch.manual_seed(0)
        found.append(gradients(net, batch())[1])
    assert error(found[1], found[0]) < 1e-6


def test_under_checkpointing_it_is_the_same():
    found = []
    for checkpointing in (False, True):
        net = encoder("modernbert", p=0.1)
        converted(net, 0.5, store="8bit")
        if checkpointing:
            net.activation_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(0)
        found.append(gradients(net, batch())[1])
    assert error(found[1], found[0]) < 1e-6


def test_low_rank_updates_of_packed_linears():
    """Of the query and the value in one, of the neurons behind the gate in another."""
    nets = []
    for _ in range(2):
        net = encoder("modernbert")
        targets = targets_of(net, ("query", "value", "attention_output", "ffn_in"))
        attach(net, targets, 4, 2.0)
        for number, one in enumerate(adapted(net).values()):
            generator = torch.Generator().manual_seed(number)
            for part in one.parts():
                torch.nn.init.normal_(part.u, std=0.1, generator=generator)
                torch.nn.init.normal_(part.v, std=0.1, generator=generator)
        freeze_but(net, ())
        nets.append(net)
    converted(nets[1])
    (loss, want), (mine, got) = (gradients(one, batch()) for one in nets)
    assert abs(loss - mine) < 2e-6 and error(got, want) < 1e-5


@pytest.mark.parametrize(
    "said", [{"norm_bias": True, "mlp_bias": True, "attention_bias": True}, {"hidden_activation": "silu"}]
)
def test_other_modernberts(said):
    dense, net = (encoder("modernbert", **said) for _ in range(2))
    converted(net)
    assert error(gradients(net, batch())[1], gradients(dense, batch())[1]) < 1e-5


def test_a_model_whose_first_layer_is_dropped():
    """The new first one has a norm in front of its attention."""
    dense = cut(encoder("modernbert"), Structure((LayerStructure((), (), dropped=True), *UNEVEN.layers[::2])))
    net = copy.deepcopy(dense)
    converted(net)
    assert error(gradients(net, batch())[1], gradients(dense, batch())[1]) < 1e-5


@pytest.mark.parametrize("family", ENCODERS)
def test_the_accounting_is_what_is_saved(family):
    """And dense bytes are what the stock layers save; positions, shared by all layers, are in neither."""
    net = encoder(family, attention="sdpa")
    dense = _saved(net)
    handle = converted(net, store="8bit")
    kept, rows = _saved(net), handle.report()
    assert sum(row["bytes_kept"] for row in rows) == pytest.approx(kept, rel=0.02)
    assert sum(row["bytes_dense"] for row in rows) == pytest.approx(dense, rel=0.05)
    assert kept < 0.25 * dense


def _saved(net):
    x, base = torch.randn(64, 4, 32, requires_grad=True), net.base_model
    places = [[layer.attention_type] if hasattr(layer, "attention_type") else [] for layer in base.layers]
    positions = [base.rotary_emb(x, torch.arange(4)[None], *place) for place in places]
    with saved_storages(net) as storages:
        for layer, one in zip(base.layers, positions, strict=True):
            x = layer(x, attention_mask=None, position_embeddings=one)
        return sum(storages.values())


@pytest.mark.parametrize(
    ("path", "change", "match"),
    [
        ("layers.1.post_mlp_layernorm", {"bias": None}, "needs a bias in LayerNorms behind"),
        ("layers.1.post_mlp_layernorm", {"weight": None}, "needs plain LayerNorms"),
        ("layers.1.post_attention_dropout", {"p": 1.0}, "needs dropout in"),
    ],
)
def test_norms_and_dropouts_that_it_does_not_reproduce_are_refused(path, change, match):
    net = encoder("nomic_bert")
    for name, value in change.items():
        setattr(find(net.base_model, path), name, value)
    with pytest.raises(UserError, match=match):
        converted(net)


def test_nothing_in_the_place_of_a_norm_behind_is_refused():
    net = encoder("nomic_bert")
    net.base_model.layers[1].post_mlp_layernorm = torch.nn.Identity()
    with pytest.raises(UserError, match="needs plain LayerNorms"):
        converted(net)
