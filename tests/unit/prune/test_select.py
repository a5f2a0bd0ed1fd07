from dataclasses import replace

import pytest
import torch

from keepfrac.errors import UserError
from keepfrac.prune.budget import UnitScores
from keepfrac.prune.cost import LatencyCost, MacsCost, ParamsCost, fraction
from keepfrac.prune.latency import LatencyTable
from keepfrac.prune.select import Limits, select, select_counts
from keepfrac.prune.structure import LayerCounts, ModelShape

SHAPE = ModelShape(4, 32, 4, 8, 64)
PARAMS = ParamsCost(SHAPE)
TABLE = LatencyTable(((0, 0.1), (4, 2.0)), ((0, 0.1), (64, 3.0)), "here")


def scores(heads=True, neurons=True):
    return UnitScores(
        SHAPE.counts(),
        [torch.rand(4) for _ in range(4)] if heads else None,
        [torch.rand(64) for _ in range(4)] if neurons else None,
    )


@pytest.mark.parametrize("cost", [PARAMS, MacsCost(SHAPE, 16), LatencyCost(SHAPE, TABLE)])
@pytest.mark.parametrize("scope", ["global", "family", "layer"])
@pytest.mark.parametrize("keep", [0.9, 0.5, 0.2])
def test_the_budget_is_met_and_never_exceeded(cost, scope, keep):
    structure = select(scores(), cost, keep, Limits(), scope)
    achieved = fraction(cost, structure.counts())
    assert achieved <= keep + 1e-9
    # nothing that was left over would still fit: in all, or in each layer
    for part in [structure.counts()] if scope != "layer" else [[c] for c in structure.counts()]:
        steps = [(1, 0)] * any(c.heads < 4 for c in part) + [(0, 1)] * any(c.neurons < 64 for c in part)
        prices = [fraction(cost, [LayerCounts(1 + h, 1 + n)]) - fraction(cost, [LayerCounts(1, 1)]) for h, n in steps]
        assert fraction(cost, part) + min(prices) > keep * len(part) / 4


@pytest.mark.parametrize("scope", ["global", "family", "layer"])
def test_alignment_comes_before_the_check(scope):
    structure = select(scores(), PARAMS, 0.5, Limits(align={"neurons": 8}), scope)
    assert all(len(s.neurons) % 8 == 0 for s in structure.layers)
    assert 0.5 - 4 * 8 * 64 / PARAMS.dense <= fraction(PARAMS, structure.counts()) <= 0.5


def test_equal_layers_come_out_alike():
    structure = select(scores(), PARAMS, 0.5, Limits(), "layer")
    assert len({(len(s.heads), len(s.neurons)) for s in structure.layers}) == 1


def test_floors_hold_and_empty_sub_layers_need_leave():
    low = scores()
    low.heads[1].zero_()
    low.neurons[2].zero_()
    kept = select(low, PARAMS, 0.3, Limits(floor={"neurons": 5}), "global").counts()
    assert kept[1].heads == 1 and kept[2].neurons == 5
    empty = select(low, PARAMS, 0.3, Limits(allow_empty=True), "global").counts()
    assert empty[1].heads == 0 and empty[2].neurons == 0


def test_a_floor_with_leave_to_empty_is_all_or_nothing():
    for keep in (0.05, 0.15, 0.3):
        for c in select(scores(), PARAMS, keep, Limits(floor={"neurons": 20}, allow_empty=True), "global").counts():
            assert c.neurons == 0 or c.neurons >= 20


def test_units_that_were_not_judged_one_by_one_stay_or_go_together():
    judged = replace(scores(), whole=frozenset({"heads", "neurons"}))
    for keep in (0.2, 0.45, 0.8):
        counts = select(judged, PARAMS, keep, Limits(align={"neurons": 8}, allow_empty=True), "global").counts()
        assert {c.heads for c in counts} <= {0, 4} and {c.neurons for c in counts} <= {0, 64}
        assert keep - 2 / 12 < fraction(PARAMS, counts) <= keep


def test_layers_that_were_judged_as_one_lose_both_their_sub_layers():
    judged = replace(scores(), whole=frozenset({"heads", "neurons"}), together=True)
    for keep in (0.2, 0.45, 0.5, 0.8):
        counts = select(judged, PARAMS, keep, Limits(allow_empty=True), "global").counts()
        assert all(bool(c.heads) == bool(c.neurons) for c in counts)
        assert fraction(PARAMS, counts) <= keep


def test_everything_is_kept_at_one():
    structure = select(scores(), PARAMS, 1.0, Limits(align={"neurons": 24}), "global")
    assert structure.counts() == SHAPE.counts()


@pytest.mark.parametrize("keep", [0.001, 1.2])
def test_a_budget_out_of_reach_names_the_range(keep):
    with pytest.raises(UserError, match=r"can be 0\.1328 to 1\.0000"):
        select(scores(), PARAMS, keep, Limits(), "global")


def test_a_cut_model_cannot_come_back_to_the_dense_budget():
    counts = [LayerCounts(2, 32) for _ in range(4)]
    half = UnitScores(counts, [torch.rand(2) for _ in range(4)], [torch.rand(32) for _ in range(4)])
    with pytest.raises(UserError, match=r"to 0\.5000"):
        select(half, PARAMS, 0.7, Limits(), "global")
    assert fraction(PARAMS, select(half, PARAMS, 0.4, Limits(), "global").counts()) == pytest.approx(
        0.4, abs=64 / PARAMS.dense
    )


def test_ranks_meet_the_budget_too():
    counts = [LayerCounts(4, 64, {"query": 16, "ffn_in": 21}) for _ in range(4)]
    ranks = [{"query": torch.rand(16), "ffn_in": torch.rand(21)} for _ in range(4)]
    structure = select(UnitScores(counts, ranks=ranks), PARAMS, 0.8, Limits(align={"ranks": 4}), "global")
    assert 0.8 - 4 * 96 / PARAMS.dense <= fraction(PARAMS, structure.counts()) <= 0.8
    for layer in structure.layers:
        assert layer.counts.ranks["query"] % 4 == 0 and len(layer.heads) == 4


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_must_be_numbers(bad):
    given = scores()
    given.heads[0][0] = bad
    with pytest.raises(UserError, match="not a finite number"):
        select(given, PARAMS, 0.5, Limits(), "global")


def test_nothing_scored_and_bad_settings_are_refused():
    with pytest.raises(UserError, match="nothing to prune"):
        select(UnitScores(SHAPE.counts()), PARAMS, 0.5, Limits(), "global")
    with pytest.raises(UserError, match="scope"):
        select(scores(), PARAMS, 0.5, Limits(), "even")
    with pytest.raises(UserError, match="align 0"):
        Limits(align={"neurons": 0})


@pytest.mark.parametrize("count", [72, 48, 12])
def test_head_counts_are_exact_where_the_original_overshot(count):
    # 73/72, 50/48 and 18/12 heads in its runs, by re-adding a head to each emptied layer
    given = [torch.rand(12) * (i + 1) for i in range(12)]
    kept = select_counts(given, count, floor=1, align=1, even=False)
    assert sum(map(len, kept)) == count and min(map(len, kept)) >= 1
    even = select_counts(given, count, floor=1, align=1, even=True)
    assert {len(units) for units in even} == {count // 12}


def test_counts_out_of_reach_are_refused():
    given = [torch.rand(12) for _ in range(12)]
    for count, align, even in ((11, 1, False), (145, 1, False), (50, 1, True), (30, 4, False)):
        with pytest.raises(UserError, match="reachable"):
            select_counts(given, count, floor=1, align=align, even=even)


def test_an_even_count_of_zero_is_zero():
    assert select_counts([torch.rand(4)] * 3, 0, floor=0, align=1, even=True) == [(), (), ()]
