import pytest
import torch

from keepfrac.errors import UserError
from keepfrac.measurement.costs import macs
from keepfrac.models.cut import counts_of, cut, encoder_layers, is_cut, largest_difference, shape_of
from keepfrac.models.dense_reference import account_of
from keepfrac.models.slicing import slice_tensors
from keepfrac.prune.attach import attach, gates_of
from keepfrac.prune.cost import MacsCost, ParamsCost, fraction, total
from keepfrac.prune.factorize import factorize_
from keepfrac.prune.gates import FAMILIES, Gates
from keepfrac.prune.masks import Masks, top_mask
from keepfrac.prune.select import Limits, select
from keepfrac.prune.structure import LayerCounts, LayerStructure, ModelShape, Structure
from tests.tiny import DECODERS, inputs, tiny

ENCODERS = ("bert", "roberta", "distilbert")
ALL = LayerStructure((0, 1, 2, 3), tuple(range(48)))
GONE = LayerStructure((), (), {}, dropped=True)
STRUCTURES = {
    "heads": (LayerStructure((1, 3), ALL.neurons), ALL, LayerStructure((0,), ALL.neurons)),
    "neurons": (LayerStructure(ALL.heads, (0, 5, 40)), ALL, LayerStructure(ALL.heads, (47,))),
    "both": (LayerStructure((0, 2), (1, 2, 3)), LayerStructure((3,), (9, 10)), ALL),
    "no attention": (ALL, LayerStructure((), ALL.neurons), ALL),
    "no feed-forward": (LayerStructure(ALL.heads, ()), ALL, ALL),
    "emptied layer": (ALL, LayerStructure((), ()), LayerStructure((1,), ())),
    "dropped layer": (GONE, LayerStructure((2,), (3, 4)), GONE),
}


def logits(net):
    return lambda batch: net(**batch).logits


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", [*ENCODERS, *DECODERS])
@pytest.mark.parametrize("name", STRUCTURES)
def test_a_cut_model_is_its_masked_self(family, name, attention):
    net, structure = tiny(family, attention=attention), Structure(STRUCTURES[name])
    counts, layers, whole = counts_of(net), encoder_layers(net), logits(net)(inputs())
    small = cut(net, structure)
    attach(net, layers, gates_of(structure, counts))
    assert largest_difference(logits(net), logits(small), [inputs(), inputs(1, 4)], 1e-5) < 1e-5
    assert (logits(net)(inputs()) - whole).abs().max() > 1e-2  # the masks do something
    assert counts_of(small) == [s.counts for s in structure.layers if not s.dropped]
    assert shape_of(small) == shape_of(net) and is_cut(small)
    if family in DECODERS:
        tied = small.get_output_embeddings().weight is small.get_input_embeddings().weight
        assert tied == small.config.tie_word_embeddings


@pytest.mark.parametrize("family", ENCODERS)
@pytest.mark.parametrize("name", STRUCTURES)
def test_macs_of_a_cut_model_are_what_the_flop_counter_counts(family, name):
    small, length = cut(tiny(family, attention="sdpa"), Structure(STRUCTURES[name])), 9
    head = 32 * 32 + 32 * 3  # pooler, or the head's first linear, and the classifier: of one token
    assert total(MacsCost(shape_of(small), length), counts_of(small)) + head == macs(small, length)


def test_a_masked_lm_is_cut_with_its_tied_head():
    net, structure = tiny(head="masked_lm"), Structure(STRUCTURES["both"])
    small = cut(net, structure)
    attach(net, encoder_layers(net), gates_of(structure, counts_of(net)))
    largest_difference(logits(net), logits(small), [inputs()], 1e-5)
    assert small.cls.predictions.decoder.weight is small.bert.embeddings.word_embeddings.weight


@pytest.mark.parametrize("family", ["bert", "distilbert", *DECODERS])
@pytest.mark.parametrize("dropped", [False, True])
def test_trained_gates_are_folded(family, dropped):
    net = tiny(family)
    gates = Gates(counts_of(net), [f for f in FAMILIES if f != "ranks"], 0.9, 2 / 3, 12.0, seed=0)
    gates.attach(net, encoder_layers(net))
    with torch.no_grad():
        for a in gates.log_alpha.values():
            a.normal_(std=1.0)
    structure = Structure((LayerStructure((0, 3), (1, 2, 30)), LayerStructure((), ()), LayerStructure((1,), (7,))))
    gates.freeze(structure.without_empty_layers() if dropped else structure)
    small = cut(net, gates.structure, gates.fixed())
    gates.eval()
    largest_difference(logits(net), logits(small), [inputs()], 1e-5)
    assert small.config.num_hidden_layers == (2 if dropped else 3)


def test_selection_to_cut_meets_the_budget_in_the_model():
    net = tiny()
    gates = Gates(counts_of(net), ("heads", "neurons", "layers"), 0.9, 2 / 3, 12.0, seed=0)
    with torch.no_grad():
        for a in gates.log_alpha.values():
            a.normal_(std=2.0)
    cost = ParamsCost(shape_of(net))
    structure = select(gates.scores(), cost, 0.35, Limits(align={"neurons": 4}, allow_empty=True), "global")
    small = cut(net, structure, gates.fixed())
    weights = sum(
        small.get_parameter(f"{path}.weight").numel()
        for layer in encoder_layers(small)
        for path in (layer.query, layer.key, layer.value, layer.attention_output, layer.ffn_in, layer.ffn_out)
        if path is not None
    )
    assert weights == total(cost, counts_of(small)) == total(cost, structure.counts())
    assert 0.35 - 4 * 64 / cost.dense <= weights / cost.dense <= 0.35


@pytest.mark.parametrize("family", ["bert", "distilbert", *DECODERS])
def test_a_cut_model_is_cut_again(family):
    net = tiny(family)
    once = cut(net, Structure(STRUCTURES["both"]))
    again = Structure((LayerStructure((1,), (0, 2)), LayerStructure((), (0,)), LayerStructure((0, 1), ())))
    twice = cut(once, again)
    direct = Structure((LayerStructure((2,), (1, 3)), LayerStructure((), (9,)), LayerStructure((0, 1), ())))
    reference = cut(net, direct)
    assert type(twice) is type(once)
    for (name, a), (other, b) in zip(twice.state_dict().items(), reference.state_dict().items(), strict=True):
        assert name == other and torch.equal(a, b)
    emptied = cut(twice, Structure((GONE, *Structure.full(counts_of(twice)[1:]).layers)))
    assert counts_of(emptied) == counts_of(twice)[1:] and shape_of(emptied) == shape_of(net)


def low_rank(family="bert", roles=("query", "attention_output", "ffn_in", "ffn_out"), rank=6):
    net = tiny(family)
    paths = [getattr(layer, role) for layer in encoder_layers(net) for role in roles]
    factorize_(net, paths, rank)
    return net


@pytest.mark.parametrize("family", ENCODERS)
def test_low_rank_gates_heads_and_neurons_are_cut_together(family):
    net = low_rank(family)
    gates = Gates(counts_of(net), FAMILIES, 0.9, 2 / 3, 12.0, seed=0)
    gates.attach(net, encoder_layers(net))
    with torch.no_grad():
        for a in gates.log_alpha.values():
            a.normal_(std=1.0)
    ranks = {"query": (0, 5), "attention_output": (1, 2, 3), "ffn_in": (4,), "ffn_out": (0, 1, 2, 3, 4, 5)}
    first = LayerStructure((0, 2, 3), tuple(range(0, 48, 2)), ranks)
    last = LayerStructure((), tuple(range(30)), {role: tuple(range(6)) for role in ranks})
    structure = Structure((first, Structure.full(gates.counts).layers[1], last))
    gates.freeze(structure)
    small = cut(net, structure, gates.fixed())
    gates.eval()
    largest_difference(logits(net), logits(small), [inputs()], 1e-5)
    # one head and three directions are above break-even (24 * 32 / 56 = 13.7 is not reached here): all stay factored
    assert counts_of(small)[0].ranks == {"query": 2, "attention_output": 3, "ffn_in": 1, "ffn_out": 6}
    assert set(counts_of(small)[2].ranks) == {"ffn_in", "ffn_out"} and small.config.low_rank


def test_ranks_at_break_even_are_merged_back_exactly():
    net = low_rank(roles=("query", "ffn_in"), rank=20)  # break-even: 16 and 19.2
    structure = Structure.full(counts_of(net))
    small = cut(net, structure)
    assert small.config.low_rank is None and counts_of(small) == ModelShape(3, 32, 4, 8, 48).counts()
    largest_difference(logits(net), logits(small), [inputs()], 1e-5)
    assert fraction(ParamsCost(shape_of(net)), structure.counts()) == 1.0


def test_factors_above_break_even_can_be_left_and_count_as_large_as_they_are():
    net = low_rank(roles=("query", "ffn_in"), rank=20)  # break-even: 16 and 19.2
    small = cut(net, Structure.full(counts_of(net)), merge=False)
    assert [c.ranks for c in counts_of(small)] == [{"query": 20, "ffn_in": 20}] * 3
    largest_difference(logits(net), logits(small), [inputs()], 1e-5)
    cost = ParamsCost(shape_of(net), merges=False)
    linears = [m.p.weight.numel() + m.q.weight.numel() for m in small.modules() if hasattr(m, "q")]
    grown = sum(linears) - 3 * (32 * 32 + 32 * 48)
    assert fraction(cost, counts_of(small)) == pytest.approx(1 + grown / cost.dense)
    assert account_of(small).kept == account_of(small).prunable + grown


@pytest.mark.parametrize("family", ["bert", *DECODERS])
def test_masks_are_cut_like_their_parameters(family):
    net, structure = tiny(family), Structure(STRUCTURES["both"])
    names = [f"{path}.weight" for layer in encoder_layers(net) for path in (layer.query, layer.ffn_out)]
    masks = Masks({name: top_mask(net.get_parameter(name).abs(), 200) for name in names})
    masks.apply_to(net)
    small = cut(net, structure)
    for name, mask in slice_tensors(dict(masks.items()), encoder_layers(net), structure).items():
        assert torch.equal(small.get_parameter(name) != 0, mask)


def test_cutting_leaves_the_model_and_the_random_numbers_alone():
    net = tiny().train()
    before, state = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    small = cut(net, Structure(STRUCTURES["both"]))
    assert torch.equal(torch.get_rng_state(), state) and small.training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    half = cut(net.to(torch.bfloat16), Structure(STRUCTURES["both"]))
    assert next(half.parameters()).dtype == torch.bfloat16
    assert small.config.num_labels == 3 and small.config.id2label == net.config.id2label


def test_a_difference_is_an_error():
    net = tiny()
    small = cut(net, Structure(STRUCTURES["heads"]))
    with pytest.raises(ValueError, match="differ by"):
        largest_difference(logits(net), logits(small), [inputs()], 1e-4)
    with pytest.raises(ValueError, match="no batch"):
        largest_difference(logits(net), logits(small), [], 1e-4)


def test_what_cannot_be_cut_is_refused():
    net = tiny()
    with pytest.raises(UserError, match="every layer"):
        cut(net, Structure((GONE,) * 3))
    with pytest.raises(UserError, match="2 layers, the model 3"):
        cut(net, Structure((ALL, ALL)))
    with pytest.raises(UserError, match="layer 0 has 4 heads"):
        cut(net, Structure((LayerStructure((4,), ()), ALL, ALL)))


def test_bert_base_counts():
    from transformers import BertConfig, BertModel

    with torch.device("meta"):
        net = BertModel(BertConfig())
    assert shape_of(net) == ModelShape(12, 768, 12, 64, 3072)
    assert counts_of(net) == [LayerCounts(12, 3072)] * 12
