import pytest
from torch import nn
from transformers.pytorch_utils import Conv1D

from keepfrac.models.anatomy import anatomy
from keepfrac.models.cut import cut
from keepfrac.prune.attach import role_weight
from keepfrac.prune.structure import LayerStructure, Structure
from tests.unit.models.tiny_decoders import tiny_decoder


@pytest.mark.parametrize(("family", "base", "kind"), [("gpt2", "transformer", Conv1D), ("llama", "model", nn.Linear)])
@pytest.mark.parametrize("head", ["causal_lm", "classification"])
def test_parts_of_a_decoder(family, base, kind, head):
    net = tiny_decoder(family, head)
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
    layer = anatomy(tiny_decoder("llama")).layers[0]
    assert (layer.num_heads, layer.num_kv_heads, layer.head_dim) == (8, 4, 4)
    assert layer.ffn_gate.endswith("mlp.gate_proj")


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_parts_of_a_cut_decoder(family):
    kept = (LayerStructure((0, 2), ()), LayerStructure((), (1,)), LayerStructure((3,), (0, 1)))
    first, second, third = anatomy(cut(tiny_decoder(family), Structure(kept))).layers
    assert (first.ffn_in, first.ffn_out, first.ffn_gate, first.activation) == (None,) * 4
    assert (second.query, second.attention, second.attention_output) == (None,) * 3
    assert first.num_heads == (2 if family == "gpt2" else 4) and third.num_heads == first.num_heads / 2
    assert first.unit_width == third.unit_width == 8
