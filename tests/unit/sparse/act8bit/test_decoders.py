"""The blocks on every decoder of the table, against their own stock layers."""

import copy

import pytest
import torch
from torch import nn

from keepfrac.adapters.surgery import adapted, attach, freeze_but
from keepfrac.errors import UserError
from keepfrac.measurement.costs import saved_storages
from keepfrac.models.anatomy import anatomy
from keepfrac.models.cut import cut
from keepfrac.models.targets import targets_of
from keepfrac.prune.structure import LayerStructure, Structure
from keepfrac.sparse.act8bit.calls import read_mask
from keepfrac.tensors.surgery import find
from tests.tiny import DECODERS, inputs, tiny
from tests.unit.sparse.act8bit.nets import KERNELS, converted, error, gradients
from tests.unit.sparse.act8bit.test_composition import gate_gradients, gated

LENGTH = 12  # longer than the windows
UNEVEN = Structure((LayerStructure((0, 2), (1, 2, 40)), LayerStructure((), tuple(range(33))), LayerStructure((3,), ())))
DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop")


def decoder(family, p=0.0, **config):
    """The same weights each time, norms' among them, in train mode."""
    torch.manual_seed(3)
    rates = dict.fromkeys(DROPOUTS, p) if family == "gpt2" else {"attention_dropout": p}
    net = tiny(family, **rates, **config)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return net.train()


def batch(left=False):
    data = inputs(4, LENGTH)
    data = {name: value.flip(1) if left else value for name, value in data.items()}
    return data | {"labels": data["input_ids"].masked_fill(data["attention_mask"] == 0, -100)}


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("kernels", KERNELS)
def test_keep_all_and_store_exactly_is_autograd(family, attention, left, kernels):
    dense, net = (decoder(family, attention=attention) for _ in range(2))
    converted(net, kernels=kernels, context="recompute" if left else "save", skip_zero_rows=left)
    (loss, want), (mine, got) = (gradients(one, batch(left)) for one in (dense, net))
    assert abs(loss - mine) < 2e-6 and error(got, want) < 1e-5


@pytest.mark.parametrize("family", DECODERS)
def test_a_head_of_classes_without_padding(family):
    """No mask reaches the layers: they are causal by themselves."""
    dense, net = (decoder(family, head="classification", attention="sdpa", layers=2) for _ in range(2))
    converted(net)
    data = {"input_ids": torch.randint(5, 60, (3, 5)), "labels": torch.tensor([0, 1, 2])}
    assert error(gradients(net, data)[1], gradients(dense, data)[1]) < 1e-5


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize(("store", "limit"), [("bf16", 0.01), ("mixed", 0.03), ("8bit", 0.03)])
def test_what_rounding_costs(family, store, limit):
    dense, net = (decoder(family) for _ in range(2))
    converted(net, store=store)
    assert 1e-5 < error(gradients(net, batch())[1], gradients(dense, batch())[1]) < limit


@pytest.mark.parametrize("family", ["gemma3_text", "qwen3", "gpt2"])
def test_gradcheck_in_float64(family):
    """With dropout of the probabilities: the same masks at every call."""
    net = decoder(family, p=0.2, layers=1, attention="eager").double()
    handle = converted(net)
    (layer,) = handle.layers.values()
    state, base = handle.rng_state(), net.base_model
    x = torch.randn(2, 3, 32, dtype=torch.float64, requires_grad=True)
    mask = torch.ones(2, 1, 3, 3, dtype=torch.bool).tril()
    mask[1, :, :, 0] = False
    named = {"attention_mask": mask}
    if hasattr(base, "rotary_emb"):
        place = (x, torch.arange(3)[None], *(["sliding_attention"] if family == "gemma3_text" else []))
        named["position_embeddings"] = base.rotary_emb(*place)

    def run(x, *_):
        handle.set_rng_state(state)
        return layer(x, **named)

    assert torch.autograd.gradcheck(run, (x, *layer.parameters()), fast_mode=True)


@pytest.mark.parametrize("family", DECODERS)
def test_a_cut_model(family):
    dense = cut(decoder(family), UNEVEN)
    net = copy.deepcopy(dense)
    handle = converted(net)
    got, want = gradients(net, batch())[1], gradients(dense, batch())[1]
    assert error(got, want) < 1e-5
    assert handle.kept()["of"].endswith(f"{sum(len(layer.linears) for layer in anatomy(dense).layers)} linears")


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("keep_frac", [0.3, 1.0])
def test_gates_and_their_gradients(family, keep_frac):
    """`method=l0 backward=late`: gates' gradients go over all rows."""
    found = []
    for late in (False, True):
        net = decoder(family)
        if late:
            converted(net, keep_frac)
        leaves, _ = gated(net)
        found.append(gate_gradients(net, leaves, batch()))
    assert error(found[1][1], found[0][1]) < 1e-5
    assert (error(found[1][0], found[0][0]) < 1e-5) == (keep_frac == 1)


@pytest.mark.parametrize("family", ["gpt2", "gemma3_text"])
def test_low_rank_updates(family):
    """Of the packed and transposed linear too."""
    nets = []
    for _ in range(2):
        net = decoder(family)
        targets = targets_of(net, ("query", "value", "attention_output", "ffn_in"))
        attach(net, targets, 4, 2.0, positions={t: torch.arange(t.start, t.start + 9) for t in targets})
        for one in adapted(net).values():
            for part in one.parts():
                nn.init.normal_(part.u, std=0.1), nn.init.normal_(part.values, std=0.1)
        freeze_but(net, ())
        nets.append(net)
    for first, second in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        second.data.copy_(first.data)
    converted(nets[1])
    assert error(gradients(nets[1], batch())[1], gradients(nets[0], batch())[1]) < 1e-5


@pytest.mark.parametrize("family", DECODERS)
def test_the_accounting_is_what_is_saved(family):
    """And dense bytes are what the stock layers save; masks and positions, shared by all layers, are in neither.

    GPT-2 writes its GELU out: it saves more than is counted.
    """
    net = decoder(family, attention="sdpa")
    ids = torch.randint(5, 60, (16, LENGTH - 8))
    shared = _saved(net, ids, layers=0)
    dense = _saved(net, ids, layers=3) - shared
    handle = converted(net, store="8bit")
    kept = _saved(net, ids, layers=3) - shared
    rows = handle.report()
    assert sum(row["bytes_kept"] for row in rows) == pytest.approx(kept, rel=0.05)
    counted = sum(row["bytes_dense"] for row in rows)
    assert 0.7 * dense < counted < dense if family == "gpt2" else counted == pytest.approx(dense, rel=0.05)
    assert kept < 0.25 * dense


def _saved(net, ids, layers):
    stack = net.base_model.get_submodule(anatomy(net).family.layers)
    whole = list(stack)
    base, count = net.base_model, net.config.num_hidden_layers
    try:
        for module in whole[layers:]:
            module.forward, module.replaced = (lambda x, *_, **__: x), module.forward
        with saved_storages(net) as storages:
            base(input_ids=ids, use_cache=False)
        return sum(storages.values())
    finally:
        for module in whole[layers:count]:
            del module.forward, module.replaced


def test_a_mask_of_tokens_alone_becomes_causal_with_its_window():
    """As attention functions that see to the rest themselves are given it."""
    x, tokens = torch.zeros(2, 5, 8), torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]])
    seen, real = read_mask(tokens, x, window=2, causal=True)
    want = [[row - 1 <= key <= row for key in range(5)] for row in range(5)]
    assert real == 9 and seen.shape == (2, 1, 5, 5)
    assert torch.equal(seen[1, 0], torch.tensor(want)) and not seen[0, 0, :, 0].any()
    assert torch.equal(seen[0, 0, 2:], torch.tensor(want)[2:])
    assert read_mask(None, x, window=2, causal=True) == (None, 10)
    assert read_mask(seen, x, window=None, causal=True) == (seen, 9)
    with pytest.raises(UserError, match="attention mask"):
        read_mask(torch.ones(2, 4, 5, 5), x, window=None, causal=True)


def test_in_bfloat16_it_is_as_near_as_the_stock_layers():
    want = gradients(decoder("gemma3_text"), batch())[1]
    errors = {}
    for name in ("stock", "late"):
        net = decoder("gemma3_text")
        if name == "late":
            converted(net, store="8bit")
        with torch.autocast("cpu", torch.bfloat16):
            loss = net(**batch()).loss
        loss.backward()
        errors[name] = error({key: p.grad for key, p in net.named_parameters()}, want)
    assert errors["late"] < 2 * errors["stock"] + 0.03


def test_no_cache_is_collected_and_none_is_taken():
    net = decoder("llama")
    handle = converted(net)
    assert net(**batch()).past_key_values is None
    with pytest.raises(UserError, match="no cache"):
        net(**batch(), use_cache=True)
    handle.restore()
    assert net.config.use_cache and net(**batch()).past_key_values is not None


@pytest.mark.parametrize("family", ["gpt2", "qwen3"])
def test_under_checkpointing_it_is_the_same(family):
    dense, net = (decoder(family, p=0.1) for _ in range(2))
    for one in (dense, net):
        converted(one, 0.5)
    net.activation_checkpointing_enable({"use_reentrant": False})
    found = []
    for one in (dense, net):
        torch.manual_seed(0)
        found.append(gradients(one, batch())[1])
    assert error(found[1], found[0]) < 1e-6


def test_a_norm_of_another_formula_is_refused():
    net = decoder("gemma3_text")
    norm = find(net, "model.layers.1.post_attention_layernorm")
    norm.forward = lambda x: x
    with pytest.raises(UserError, match=r"RMSNorms; in model\.layers\.1"):
        converted(net)
