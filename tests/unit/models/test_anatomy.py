import pytest
from torch import nn
from transformers import BertModel, OPTConfig, OPTModel
from transformers.pytorch_utils import Conv1D

from keepfrac.errors import UserError
from keepfrac.models.anatomy import anatomy
from keepfrac.models.cut import cut, encoder_layers, shape_of
from keepfrac.prune.attach import role_weight
from keepfrac.prune.structure import LayerStructure, Structure
from tests.tiny import tiny


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
@pytest.mark.parametrize("head", ["classification", "masked_lm"])
def test_every_path_leads_to_what_it_names(family, head):
    net = tiny(family, head)
    parts = anatomy(net)
    assert parts.model_type == family
    assert len(parts.layers) == 3
    hidden, inner = 32, net.get_submodule(parts.layers[0].ffn_in).out_features
    for layer in parts.layers:
        widths = {"query": (hidden, hidden), "key": (hidden, hidden), "value": (hidden, hidden)}
        widths |= {"attention_output": (hidden, hidden), "ffn_in": (hidden, inner), "ffn_out": (inner, hidden)}
        for name, (inputs, outputs) in widths.items():
            linear = net.get_submodule(getattr(layer, name))
            assert isinstance(linear, nn.Linear)
            assert (linear.in_features, linear.out_features) == (inputs, outputs)
        assert (layer.num_heads, layer.head_dim) == (4, 8)
        assert all(isinstance(net.get_submodule(path), nn.LayerNorm) for path in layer.layer_norms)
        assert len(layer.layer_norms) == 2
        assert callable(net.get_submodule(layer.activation))
        assert layer.query.startswith(layer.attention)
        assert layer.attention.startswith(layer.path)
    linears = [path for layer in parts.layers for path in layer.linears]
    assert len(set(linears)) == 18
    net.get_submodule(parts.embeddings)
    assert parts.head
    assert all(not path.startswith(parts.base) for path in parts.head)


def test_a_bare_encoder_has_no_base_and_no_head():
    net = tiny("bert").bert
    assert isinstance(net, BertModel)
    parts = anatomy(net)
    assert (parts.base, parts.head, parts.embeddings) == ("", (), "embeddings")
    assert parts.layers[0].query == "encoder.layer.0.attention.self.query"


def test_the_pooler_is_named_where_there_is_one():
    assert anatomy(tiny("bert")).pooler == "bert.pooler"
    assert anatomy(tiny("roberta")).pooler is None
    assert anatomy(tiny("distilbert")).pooler is None


@pytest.mark.parametrize(
    "net",
    [nn.Linear(2, 2), OPTModel(OPTConfig(num_hidden_layers=1, hidden_size=8, num_attention_heads=2))],
    ids=["none", "opt"],
)
def test_an_unknown_architecture_is_an_error_that_lists_the_known(net):
    for ask in (anatomy, encoder_layers, shape_of):  # the last two for cuts: OPT has no key for the number of neurons
        with pytest.raises(UserError, match=r"not known.*bert.*distilbert.*roberta") as error:
            ask(net)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(("family", "base", "kind"), [("gpt2", "transformer", Conv1D), ("llama", "model", nn.Linear)])
@pytest.mark.parametrize("head", ["causal_lm", "classification"])
def test_parts_of_a_decoder(family, base, kind, head):
    net = tiny(family, head)
    parts = anatomy(net)
    assert (parts.base, parts.causal, parts.pooler) == (base, True, None)
    assert parts.head == (("lm_head",) if head == "causal_lm" else ("score",))
    assert len(parts.layers) == 3 and net.get_submodule(parts.embeddings) is not None
    for layer in parts.layers:
        assert all(isinstance(net.get_submodule(path), kind) for path in layer.linears)
        assert len(layer.linears) == {"gpt2": 4, "llama": 7}[family]
        assert layer.transposed is (len(layer.layout.packed_with("query")) == 3) is (family == "gpt2")
        for role in ("query", "key", "value"):
            assert role_weight(net, layer, role).shape[1] == 32
        assert layer.unit_width == 8
    assert anatomy(net.get_submodule(base)).base == ""


def test_heads_that_share_keys():
    layer = anatomy(tiny("llama")).layers[0]
    assert (layer.num_heads, layer.num_kv_heads, layer.head_dim) == (8, 4, 4)
    assert layer.ffn_gate.endswith("mlp.gate_proj")


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_parts_of_a_cut_decoder(family):
    kept = (LayerStructure((0, 2), ()), LayerStructure((), (1,)), LayerStructure((3,), (0, 1)))
    first, second, third = anatomy(cut(tiny(family), Structure(kept))).layers
    assert (first.ffn_in, first.ffn_out, first.ffn_gate, first.activation) == (None,) * 4
    assert (second.query, second.attention, second.attention_output) == (None,) * 3
    assert first.num_heads == (2 if family == "gpt2" else 4) and third.num_heads == first.num_heads / 2
    assert first.unit_width == third.unit_width == 8
