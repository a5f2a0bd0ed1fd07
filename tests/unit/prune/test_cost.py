import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from keepfrac.errors import UserError
from keepfrac.prune.cost import LatencyCost, MacsCost, ParamsCost, fraction, total
from keepfrac.prune.latency import LatencyTable, cached_table, measure_table
from keepfrac.prune.structure import LayerCounts, ModelShape

BERT_BASE = ModelShape(12, 768, 12, 64, 3072)
SMALL = ModelShape(2, 16, 4, 4, 24)
TABLE = LatencyTable(((0, 0.1), (2, 1.0), (4, 1.5)), ((0, 0.2), (12, 1.0), (24, 3.0)), "here")


def test_macs_are_what_the_flop_counter_counts():
    x, width, length = torch.randn(1, 10, SMALL.hidden), 2 * SMALL.head_dim, 10
    q, k, v = (nn.Linear(SMALL.hidden, width) for _ in range(3))
    out, one, two = nn.Linear(width, SMALL.hidden), nn.Linear(SMALL.hidden, 9), nn.Linear(9, SMALL.hidden)
    with FlopCounterMode(display=False) as counter:
        heads = [f(x).view(1, length, 2, SMALL.head_dim).transpose(1, 2) for f in (q, k, v)]
        scores = heads[0] @ heads[1].transpose(-1, -2)
        out((scores @ heads[2]).transpose(1, 2).reshape(1, length, width))
        two(one(x))
    assert 2 * total(MacsCost(SMALL, length), [LayerCounts(2, 9)]) == counter.get_total_flops()


@pytest.mark.parametrize("cost", [ParamsCost(SMALL), MacsCost(SMALL, 7), LatencyCost(SMALL, TABLE)])
def test_expected_equals_exact_where_the_counts_are_whole(cost):
    whole = [LayerCounts(2, 12), LayerCounts(0, 24)]
    soft = [LayerCounts(torch.tensor(float(c.heads)), torch.tensor(float(c.neurons))) for c in whole]
    assert fraction(cost, soft).item() == pytest.approx(float(fraction(cost, whole)), rel=1e-6)
    assert fraction(cost, SMALL.counts()) == 1.0


def test_exact_ranks_cost_no_more_than_the_dense_matrix_and_expected_ones_keep_their_gradient():
    cost = ParamsCost(SMALL)
    dense = [LayerCounts(4, 24, {"query": 16, "ffn_in": 16})] * 2
    assert fraction(cost, dense) == 1.0
    low = [LayerCounts(4, 24, {"query": 3})] * 2
    assert total(cost, low) == cost.dense - 2 * (16 * 16 - 3 * 32)
    rank = torch.tensor(16.0, requires_grad=True)
    total(cost, [LayerCounts(4, 24, {"query": rank})]).backward()
    assert rank.grad.item() == 32.0


@pytest.mark.parametrize("merges", [True, False])
def test_a_removed_sub_layer_takes_its_factors_along(merges):
    cost = ParamsCost(SMALL, merges)
    gone = LayerCounts(0, 0, {"query": 16, "attention_output": 5, "ffn_out": 9})
    assert total(cost, [gone, LayerCounts(4, 24)]) == cost.dense / 2


def test_latency_is_piecewise_linear_and_differentiable():
    cost = LatencyCost(SMALL, TABLE)
    assert cost.attention(1, {}) == pytest.approx(0.55) and cost.ffn(18, {}) == pytest.approx(2.0)
    heads = torch.tensor(3.0, requires_grad=True)
    cost.attention(heads, {}).backward()
    assert heads.grad.item() == pytest.approx(0.25)
    assert cost.dense == pytest.approx(2 * (1.5 + 3.0))


def test_a_latency_table_never_falls_and_survives_its_file(tmp_path):
    table = LatencyTable(((2, 0.8), (0, 0.1), (1, 0.9)), ((0, 0.0), (4, 1.0)), "cpu")
    assert table.heads == ((0, 0.1), (1, 0.9), (2, 0.9))
    table.save(tmp_path / "cache" / "t.json")
    assert LatencyTable.load(tmp_path / "cache" / "t.json") == table
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(UserError, match="not a latency table"):
        LatencyTable.load(tmp_path / "bad.json")


def test_a_table_is_measured_for_its_model():
    table = measure_table(SMALL, 2, 5, torch.device("cpu"), torch.float32, repeats=2, neuron_points=4)
    cost = LatencyCost(SMALL, table)
    assert 0 < fraction(cost, [LayerCounts(1, 4)] * 2) <= 1 and "batch 2, 5 tokens, cpu, float32" in cost.unit
    with pytest.raises(UserError, match="measure it for this model"):
        LatencyCost(BERT_BASE, table)
    with pytest.raises(UserError, match="heads and neurons only"):
        cost.attention(2, {"query": 2})


def test_a_table_is_measured_once_for_a_length_and_a_processor_and_draws_no_random_numbers(tmp_path, monkeypatch):
    before, where = torch.get_rng_state(), (torch.device("cpu"), torch.float32)
    first = cached_table(tmp_path, SMALL, 1, 4, *where, repeats=1)
    assert cached_table(tmp_path, SMALL, 1, 4, *where, repeats=1) == first
    cached_table(tmp_path, SMALL, 1, 5, *where, repeats=1)
    monkeypatch.setattr("keepfrac.prune.latency.device_name", lambda _: "another")
    cached_table(tmp_path, SMALL, 1, 4, *where, repeats=1)
    assert len(list(tmp_path.iterdir())) == 3 and torch.equal(before, torch.get_rng_state())
