import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

from keepfrac.errors import UserError
from keepfrac.models import pruned
from keepfrac.models.anatomy import anatomy
from keepfrac.models.cut import counts_of, cut, encoder_layers, is_cut, largest_difference, shape_of
from keepfrac.models.dense_reference import blueprint, original_parameters
from keepfrac.models.slicing import slice_tensors
from keepfrac.prune.attach import attach, gates_of, role_weight
from keepfrac.prune.budget import UnitScores
from keepfrac.prune.cost import MacsCost, ParamsCost, fraction, total
from keepfrac.prune.gates import FAMILIES, Gates
from keepfrac.prune.masks import Masks, top_mask
from keepfrac.prune.scores import magnitude
from keepfrac.prune.select import Limits, select
from keepfrac.prune.structure import LayerStructure, ModelShape, Structure
from tests.unit.models.test_cut import ALL, GONE, STRUCTURES
from tests.unit.models.tiny import inputs
from tests.unit.models.tiny_decoders import tiny_decoder

DECODERS = ["gpt2", "llama"]


def logits(net):
    return lambda batch: net(**batch).logits


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("name", STRUCTURES)
def test_a_cut_decoder_is_its_masked_self(family, name, attention):
    net, structure = tiny_decoder(family, attention=attention), Structure(STRUCTURES[name])
    counts, layers = counts_of(net), encoder_layers(net)
    whole = logits(net)(inputs())
    small = cut(net, structure)
    attach(net, layers, gates_of(structure, counts))
    assert largest_difference(logits(net), logits(small), [inputs(), inputs(1, 4)], 1e-5) < 1e-5
    assert (logits(net)(inputs()) - whole).abs().max() > 1e-2  # the masks do something
    kept = [s for s in structure.layers if not s.dropped]
    assert counts_of(small) == [s.counts for s in kept]
    assert shape_of(small) == shape_of(net) and is_cut(small)
    head = small.get_output_embeddings()
    assert (head.weight is small.get_input_embeddings().weight) == small.config.tie_word_embeddings


def test_only_whole_groups_of_llamas_query_heads_go():
    net = tiny_decoder("llama")
    assert shape_of(net) == ModelShape(3, 32, 4, 4, 48, group=2, gated=True, causal=True)
    small = cut(net, Structure((LayerStructure((1, 3), ALL.neurons), ALL, ALL)))
    attention = small.model.layers[0].self_attn
    widths = [getattr(attention, f"{name}_proj").out_features for name in "qkvo"]
    assert widths == [16, 8, 8, 32] and attention.o_proj.in_features == 16
    old = net.model.layers[0].self_attn
    assert torch.equal(attention.k_proj.weight, old.k_proj.weight[[4, 5, 6, 7, 12, 13, 14, 15]])
    assert torch.equal(attention.q_proj.weight, old.q_proj.weight[[*range(8, 16), *range(24, 32)]])


def test_gpt2s_fused_linear_loses_columns_in_all_three_parts():
    net = tiny_decoder("gpt2")
    small = cut(net, Structure((LayerStructure((2,), ALL.neurons), ALL, ALL)))
    attention, old = small.transformer.h[0].attn, net.transformer.h[0].attn
    assert attention.split_size == 8 and attention.c_attn.weight.shape == (32, 24)
    columns = [part * 32 + 16 + k for part in range(3) for k in range(8)]
    assert torch.equal(attention.c_attn.weight, old.c_attn.weight[:, columns])
    assert torch.equal(attention.c_attn.bias, old.c_attn.bias[columns])
    assert torch.equal(attention.c_proj.weight, old.c_proj.weight[16:24])


@pytest.mark.parametrize("family", DECODERS)
def test_trained_gates_are_folded(family):
    net = tiny_decoder(family)
    gates = Gates(counts_of(net), [f for f in FAMILIES if f != "ranks"], 0.9, 2 / 3, 12.0, seed=0)
    gates.attach(net, encoder_layers(net))
    with torch.no_grad():
        for a in gates.log_alpha.values():
            a.normal_(std=1.0)
    structure = Structure((LayerStructure((0, 3), (1, 2, 30)), LayerStructure((), ()), LayerStructure((1,), (7,))))
    gates.freeze(structure.without_empty_layers())
    small = cut(net, gates.structure, gates.fixed())
    gates.eval()
    largest_difference(logits(net), logits(small), [inputs()], 1e-5)
    assert small.config.num_hidden_layers == 2


@pytest.mark.parametrize("family", DECODERS)
def test_a_cut_decoder_is_cut_again(family):
    net = tiny_decoder(family)
    once = cut(net, Structure(STRUCTURES["both"]))
    again = Structure((LayerStructure((1,), (0, 2)), LayerStructure((), (0,)), LayerStructure((0, 1), ())))
    twice = cut(once, again)
    direct = Structure((LayerStructure((2,), (1, 3)), LayerStructure((), (9,)), LayerStructure((0, 1), ())))
    reference = cut(net, direct)
    assert type(twice) is type(once)
    for (name, a), (other, b) in zip(twice.state_dict().items(), reference.state_dict().items(), strict=True):
        assert name == other and torch.equal(a, b)


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("name", ["both", "emptied layer", "dropped layer"])
def test_a_cut_decoder_generates_with_its_cache_as_without(family, name):
    """Also where the first layer, whose cache counts the tokens, has lost its attention."""
    structure = STRUCTURES[name]
    if name == "emptied layer":
        structure = structure[1:] + structure[:1]
        structure = (LayerStructure((), ALL.neurons), *structure[1:])
    small = cut(tiny_decoder(family), Structure(structure))
    batch = inputs(2, 6)
    batch = {key: value.flip(1) for key, value in batch.items()}  # padding on the left
    search = {"max_new_tokens": 6, "num_beams": 2, "do_sample": False}
    with_cache, without = (small.generate(**batch, **search, use_cache=use) for use in (True, False))
    assert torch.equal(with_cache, without) and with_cache.shape[1] > 6


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("head", ["causal_lm", "classification"])
def test_reloading_is_exact(family, head, tmp_path):
    small = cut(tiny_decoder(family, head), Structure(STRUCTURES["both"]))
    small.save_pretrained(tmp_path)
    again = type(small).from_pretrained(tmp_path, attn_implementation="eager")
    assert torch.equal(logits(small)(inputs()), logits(again)(inputs()))
    if head == "causal_lm":
        assert isinstance(AutoModelForCausalLM.from_pretrained(tmp_path), type(small))


def test_the_folder_loads_without_this_project(tmp_path):
    for family in DECODERS:
        small = cut(tiny_decoder(family), Structure(STRUCTURES["both"]))
        small.save_pretrained(tmp_path / family)
        torch.save(logits(small)(inputs()), tmp_path / f"{family}.pt")
    torch.save(inputs(), tmp_path / "inputs.pt")
    program = (
        "import sys, torch\n"
        "from transformers import AutoModelForCausalLM\n"
        "for family in ('gpt2', 'llama'):\n"
        "    net = AutoModelForCausalLM.from_pretrained(family, trust_remote_code=True, attn_implementation='eager')\n"
        "    assert torch.equal(net(**torch.load('inputs.pt')).logits, torch.load(f'{family}.pt'))\n"
        "assert not any(name.partition('.')[0] in ('src', 'keepfrac') for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, timeout=120)


@pytest.mark.parametrize("family", DECODERS)
def test_selection_to_cut_meets_the_budget_in_the_model(family):
    net = tiny_decoder(family)
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
    net = tiny_decoder(family)
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
    net = tiny_decoder("llama")
    cost, length = MacsCost(shape_of(net), 10), 10
    linears = sum(
        net.get_parameter(f"{path}.weight").numel() for layer in anatomy(net).layers for path in layer.linears
    )
    assert cost.dense == length * linears + 3 * 2 * length**2 * 32
    assert fraction(cost, counts_of(net)) == 1.0


@pytest.mark.parametrize("family", DECODERS)
def test_masks_are_cut_like_their_parameters(family):
    net, structure = tiny_decoder(family), Structure(STRUCTURES["both"])
    names = [f"{path}.weight" for layer in encoder_layers(net) for path in (layer.query, layer.ffn_out)]
    masks = Masks({name: top_mask(net.get_parameter(name).abs(), 200) for name in names})
    masks.apply_to(net)
    small = cut(net, structure)
    for name, mask in slice_tensors(dict(masks.items()), encoder_layers(net), structure).items():
        assert torch.equal(small.get_parameter(name) != 0, mask)


def test_what_cannot_be_cut_is_refused():
    net = tiny_decoder("gpt2", scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(UserError, match="cannot lose whole layers"):
        cut(net, Structure((GONE, ALL, ALL)))
    config = {"n_embd": 32, "n_head": 4, "n_layer": 2, "layer_heads": [1]}
    with pytest.raises(ValueError, match="layer_heads is"):
        pruned.PrunedGPT2Model(pruned.PrunedGPT2Config(**config))
    with pytest.raises(ValueError, match="no low-rank linears"):
        pruned.PrunedGPT2Model(pruned.PrunedGPT2Config(n_embd=32, n_head=4, low_rank={"h": 1}))
