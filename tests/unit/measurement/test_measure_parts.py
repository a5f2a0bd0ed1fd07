"""Parameters and arithmetic by part, against what can be counted by hand."""

import json

import pytest
import torch

from keepfrac.measurement.costs import macs, parameters
from keepfrac.measurement.parts import LENGTH, parts
from keepfrac.models.cut import counts_of, cut, encoder_layers
from keepfrac.prune.factorize import factorize_
from keepfrac.prune.structure import LayerStructure, Structure
from src.measure import main
from tests.tiny import tiny

CUT = Structure((LayerStructure((1, 3), (0, 5)), LayerStructure((), (2,)), LayerStructure((0,), ())))


@pytest.fixture(autouse=True)
def long_enough(monkeypatch):
    monkeypatch.setattr("keepfrac.measurement.parts.LENGTH", 16)  # the tiny models know 40 positions


def by_part(net):
    return {row["part"]: row for row in parts(net)}


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
@pytest.mark.parametrize("head", ["classification", "masked_lm"])
def test_the_parts_are_the_whole(family, head):
    net = tiny(family, head, attention="sdpa")
    for one in (net, cut(net, CUT)):
        found = by_part(one)
        assert sum(row["params"] for row in found.values()) == parameters(one)
        assert sum(row["macs"] for row in found.values()) == macs(one, 16)
        assert "other" not in found and found["embeddings"]["macs"] == 0


def test_each_part_counts_what_it_holds():
    net, length = tiny(attention="sdpa"), 16
    found = by_part(net)
    assert found["attention"]["params"] == 3 * 4 * (32 * 32 + 32)
    assert found["feed-forward"]["params"] == 3 * (2 * 32 * 48 + 48 + 32)
    assert found["norms"]["params"] == 3 * 4 * 32 and found["pooler"]["params"] == 32 * 32 + 32
    assert found["attention"]["macs"] == 3 * (4 * length * 32 * 32 + 2 * length * length * 32)
    assert found["feed-forward"]["macs"] == 3 * 2 * length * 32 * 48
    small = by_part(cut(net, CUT))
    assert small["attention"]["macs"] == 4 * length * 32 * 24 + 2 * length * length * 24  # 3 heads of 8 are left
    assert small["feed-forward"]["params"] == 2 * 32 * 3 + 3 + 2 * 32


def test_low_rank_and_half_precision_count_as_they_are():
    net = tiny()
    factorize_(net, [encoder_layers(net)[1].ffn_in], rank=4)
    found = by_part(cut(net, Structure.full(counts_of(net))).to(torch.bfloat16))
    assert found["feed-forward"]["params"] == 3 * (2 * 32 * 48 + 48 + 32) - 32 * 48 + 4 * (32 + 48)
    assert all(row["parameter_bytes"] == 2 * row["params"] for row in found.values())


def test_the_command_prints_them(tmp_path, capsys):
    net = tiny()
    net.config.max_position_embeddings = 40
    net.save_pretrained(tmp_path)
    assert LENGTH == 128
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("keepfrac.measurement.costs.macs", lambda *_: 1)  # of 128 tokens, more than this model knows
        assert main([str(tmp_path)]) == 0
        shown = capsys.readouterr().out
        assert main([str(tmp_path), "--json"]) == 0
    assert "parameter bytes" in shown and "memory" not in shown
    assert json.loads(capsys.readouterr().out)["parts"][0]["part"] == "embeddings"
