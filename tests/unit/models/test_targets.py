"""Roles and patterns as linears, in every family."""

import pytest

from keepfrac.adapters.surgery import attach
from keepfrac.errors import UserError
from keepfrac.models.targets import linears_of, targets_of
from keepfrac.prune.factorize import factorize_
from tests.tiny import tiny


def test_roles_are_one_linear_in_each_layer():
    net = tiny()
    assert [t.path for t in targets_of(net, ["query", "ffn_out"])] == [
        f"bert.encoder.layer.{i}.{name}" for i in range(3) for name in ("attention.self.query", "output.dense")
    ]


def test_gpt2s_query_and_value_are_slices():
    slices = {(t.path, t.role, t.start, t.size) for t in targets_of(tiny("gpt2"), ["query", "value"])}
    path = "transformer.h.0.attn.c_attn"
    assert {(path, "query", 0, 32), (path, "value", 64, 32)} < slices and len(slices) == 6


def test_llama_has_a_gate_and_bert_has_not():
    wanted = ["query", "key", "ffn_gate", "ffn_in", "ffn_out"]
    paths = [target.path.rpartition(".")[2] for target in targets_of(tiny("llama"), wanted)]
    assert paths[:5] == ["q_proj", "k_proj", "gate_proj", "up_proj", "down_proj"]
    with pytest.raises(UserError, match="ffn_gate: this BertForSequenceClassification has no such part"):
        targets_of(tiny(), ["query", "ffn_gate"])


def test_patterns_are_whole_paths():
    assert [t.path for t in targets_of(tiny(), [r"bert\.pooler\.dense"])] == ["bert.pooler.dense"]
    for pattern in ("pooler", "dense$", "["):
        with pytest.raises(UserError, match=r"matches nothing|no regular expression"):
            targets_of(tiny(), [pattern])


def test_a_part_that_two_entries_name_is_refused():
    whole = r"transformer\.h\.1\.attn\.c_attn"
    for wanted in (["value", whole], [whole, "query"]):
        with pytest.raises(UserError, match=r"both name outputs of transformer\.h\.1\.attn\.c_attn"):
            targets_of(tiny("gpt2"), wanted)
    assert len(targets_of(tiny("gpt2"), ["query", "key", "value", r"transformer\.h\.1\.mlp\.c_fc"])) == 10
    assert len(targets_of(tiny(), ["query", r"bert\.encoder\.layer\.1\.attention\.self\.query"])) == 3


def test_two_factors_are_two_targets_before_and_after_they_have_updates():
    net = tiny()
    path = "bert.encoder.layer.1.attention.self.query"
    factorize_(net, [path], 5)
    targets = [t for t in targets_of(net, ["query"]) if path in t.path]
    assert [t.path for t in targets] == [f"{path}.p", f"{path}.q"]
    attach(net, targets, 2, 1.0)
    assert [t for t in targets_of(net, ["query"]) if path in t.path] == targets
    assert {f"{path}.p", f"{path}.q"} < set(linears_of(net, pooler=False)) and len(linears_of(net, False)) == 19


def test_s1_leaves_pooler_and_classifier_alone_unless_asked():
    assert len(linears_of(tiny(), pooler=False)) == 18
    assert linears_of(tiny(), pooler=True)[-1] == "bert.pooler.dense"
    with pytest.raises(UserError, match="has no pooler"):
        linears_of(tiny("gpt2"), pooler=True)
