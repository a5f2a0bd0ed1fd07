import pytest
import torch
from transformers import AutoModelForCausalLM

from keepfrac.errors import UserError
from keepfrac.models import pruned
from keepfrac.models.anatomy import anatomy
from keepfrac.models.cut import counts_of, cut, encoder_layers, shape_of
from keepfrac.models.dense_reference import blueprint, original_parameters
from keepfrac.models.families import FAMILIES
from keepfrac.prune.attach import role_weight
from keepfrac.prune.budget import UnitScores
from keepfrac.prune.cost import MacsCost, ParamsCost, fraction, total
from keepfrac.prune.scores import magnitude
from keepfrac.prune.select import Limits, select
from keepfrac.prune.structure import LayerStructure, ModelShape, Structure
from tests.tiny import DECODERS, inputs, tiny
from tests.unit.models.elsewhere import all_logits_elsewhere
from tests.unit.models.test_cut import ALL, GONE, STRUCTURES, logits


def test_only_whole_groups_of_llamas_query_heads_go():
    net = tiny("llama")
    assert shape_of(net) == ModelShape(3, 32, 4, 4, 48, group=2, gated=True, causal=True)
    small = cut(net, Structure((LayerStructure((1, 3), ALL.neurons), ALL, ALL)))
    attention = small.model.layers[0].self_attn
    widths = [getattr(attention, f"{name}_proj").out_features for name in "qkvo"]
    assert widths == [16, 8, 8, 32] and attention.o_proj.in_features == 16
    old = net.model.layers[0].self_attn
    assert torch.equal(attention.k_proj.weight, old.k_proj.weight[[4, 5, 6, 7, 12, 13, 14, 15]])
    assert torch.equal(attention.q_proj.weight, old.q_proj.weight[[*range(8, 16), *range(24, 32)]])


def test_gpt2s_fused_linear_loses_columns_in_all_three_parts():
    net = tiny("gpt2")
    small = cut(net, Structure((LayerStructure((2,), ALL.neurons), ALL, ALL)))
    attention, old = small.transformer.h[0].attn, net.transformer.h[0].attn
    assert attention.split_size == 8 and attention.c_attn.weight.shape == (32, 24)
    columns = [part * 32 + 16 + k for part in range(3) for k in range(8)]
    assert torch.equal(attention.c_attn.weight, old.c_attn.weight[:, columns])
    assert torch.equal(attention.c_attn.bias, old.c_attn.bias[columns])
    assert torch.equal(attention.c_proj.weight, old.c_proj.weight[16:24])


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("name", ["both", "emptied layer", "dropped layer"])
def test_a_cut_decoder_generates_with_its_cache_as_without(family, name):
    """Also where the first layer, whose cache counts the tokens, has lost its attention."""
    structure = STRUCTURES[name]
    if name == "emptied layer":
        structure = structure[1:] + structure[:1]
        structure = (LayerStructure((), ALL.neurons), *structure[1:])
    small = cut(tiny(family), Structure(structure))
    batch = inputs(2, 6)
    batch = {key: value.flip(1) for key, value in batch.items()}  # padding on the left
    search = {"max_new_tokens": 6, "num_beams": 2, "do_sample": False}
    with_cache, without = (small.generate(**batch, **search, use_cache=use) for use in (True, False))
    assert torch.equal(with_cache, without) and with_cache.shape[1] > 6


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("head", ["causal_lm", "classification"])
def test_reloading_is_exact(family, head, tmp_path):
    small = cut(tiny(family, head), Structure(STRUCTURES["both"]))
    small.save_pretrained(tmp_path)
    again = type(small).from_pretrained(tmp_path, attn_implementation="eager")
    assert torch.equal(logits(small)(inputs()), logits(again)(inputs()))
    if head == "causal_lm":
        assert isinstance(AutoModelForCausalLM.from_pretrained(tmp_path), type(small))


def test_the_folders_load_and_generate_without_this_project(tmp_path):
    """All families in one process; some with a layer dropped: what the configuration lists by layer goes with it."""
    names = [(family, name) for family in DECODERS for name in ("both", "first layer dropped")]
    structures = {"both": STRUCTURES["both"], "first layer dropped": (GONE, *STRUCTURES["both"][:2])}
    small = [cut(tiny(family), Structure(structures[name])) for family, name in names]
    folders = {}
    for number, net in enumerate(small):
        net.save_pretrained(tmp_path / f"model{number}")
        folders[tmp_path / f"model{number}"] = tmp_path / f"again{number}"
    for net, found in zip(small, all_logits_elsewhere(folders, "AutoModelForCausalLM"), strict=True):
        assert torch.equal(found, logits(net)(inputs()))


@pytest.mark.parametrize("family", ["qwen2", "smollm3", "gemma3_text"])
def test_windows_and_positions_stay_with_their_layers(family):
    net = tiny(family)
    small = cut(net, Structure((ALL, GONE, ALL)))
    listed = {name: getattr(net.config, name) for name in FAMILIES[family].layer_lists}
    for name, values in listed.items():
        assert len(set(values)) > 1 and getattr(small.config, name) == [values[0], values[2]]
    dense = blueprint(small)("meta")
    assert {name: getattr(dense.config, name) for name in listed} == listed


@pytest.mark.parametrize("family", DECODERS)
def test_selection_to_cut_meets_the_budget_in_the_model(family):
    net = tiny(family)
    cost = ParamsCost(shape_of(net))
    structure = select(magnitude(net, encoder_layers(net)), cost, 0.5, Limits(), "family")
    small = cut(net, structure)
    weights = sum(
        small.get_parameter(f"{path}.weight").numel() for layer in encoder_layers(small) for path in layer.linears
    )
    assert weights == total(cost, counts_of(small)) and 0.45 < weights / cost.dense <= 0.5
    assert original_parameters(small) == sum(p.numel() for p in net.parameters())
    twin = blueprint(small)("cpu").state_dict()
    assert {name: value.shape for name, value in twin.items()} == {n: v.shape for n, v in net.state_dict().items()}


@pytest.mark.parametrize("family", DECODERS)
def test_magnitude_scores_count_what_a_unit_owns(family):
    net = tiny(family)
    scores = magnitude(net, encoder_layers(net))
    assert isinstance(scores, UnitScores)
    layers = encoder_layers(net)
    whole = sum(role_weight(net, layer, role).square().sum() for layer in layers for role in shape_of(net).roles)
    found = sum(one.square().sum() for family in (scores.heads, scores.neurons) for one in family)
    assert found == pytest.approx(whole.item(), rel=1e-5)
    gone = [tuple(u for u in range(4) if u != s.argmin()) for s in scores.heads]
    small = cut(net, Structure(tuple(LayerStructure(kept, ALL.neurons) for kept in gone)))
    left = sum(s.square().sum() for s in magnitude(small, encoder_layers(small)).heads)
    lost = sum(s.min().square() for s in scores.heads)
    assert left == pytest.approx((sum(s.square().sum() for s in scores.heads) - lost).item(), rel=1e-5)


def test_macs_are_those_of_the_linears_and_of_the_attention_products():
    net = tiny("llama")
    cost, length = MacsCost(shape_of(net), 10), 10
    linears = sum(
        net.get_parameter(f"{path}.weight").numel() for layer in anatomy(net).layers for path in layer.linears
    )
    assert cost.dense == length * linears + 3 * 2 * length**2 * 32
    assert fraction(cost, counts_of(net)) == 1.0


def test_what_cannot_be_cut_is_refused():
    net = tiny("gpt2", scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(UserError, match="cannot lose whole layers"):
        cut(net, Structure((GONE, ALL, ALL)))
    config = {"n_embd": 32, "n_head": 4, "n_layer": 2, "layer_heads": [1]}
    with pytest.raises(ValueError, match="layer_heads is"):
        pruned.PrunedGPT2Model(pruned.PrunedGPT2Config(**config))
    with pytest.raises(ValueError, match="no low-rank linears"):
        pruned.PrunedGPT2Model(pruned.PrunedGPT2Config(n_embd=32, n_head=4, low_rank={"h": 1}))
