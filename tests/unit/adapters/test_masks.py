"""S1: exact shares of groups, blocks or all, by the right score and scale."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from keepfrac.adapters.masks import blocks_of, choose_s1
from keepfrac.adapters.surgery import Target, adapted, attach
from keepfrac.errors import UserError


def net() -> nn.Sequential:
    """Two plain linears, of which the first has an update, and a fused Conv1D with one on its last third."""
    torch.manual_seed(0)
    found = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 8), Conv1D(24, 8))
    attach(found, [Target("0", "query"), Target("2", "value", 16, 8)], 2, 3.0)
    for own in adapted(found).values():
        nn.init.normal_(own.parts()[0].u)
    return found


PATHS = ["0", "1", "2"]


@pytest.mark.parametrize("score", ["w", "delta", "w_delta"])
@pytest.mark.parametrize("scope", ["groups", "matrix", "global"])
def test_shares_are_exact(score, scope):
    own = net()
    masks = choose_s1(own, PATHS, 0.25, score, scope, {})
    assert all(mask.shape == own.get_parameter(name).shape for name, mask in masks.items())
    kept = {name: int(mask.sum()) for name, mask in masks.items()}
    fused = masks["2.weight"]
    updated, rest = kept["0.weight"] + int(fused[:, 16:].sum()), kept["1.weight"] + int(fused[:, :16].sum())
    if scope == "groups":
        assert (updated, rest) == (80, 64)  # a quarter of 256 + 64, and of 128 + 128
    elif scope == "matrix":
        assert kept == {"0.weight": 64, "1.weight": 32, "2.weight": 48}
    assert updated + rest == 144


@pytest.mark.parametrize("score", ["w", "delta", "w_delta"])
def test_the_largest_stay_by_their_score_with_its_scale(score):
    own = net()
    mask = choose_s1(own, PATHS, 0.25, score, "matrix", {})["0.weight"]
    update = own[0].parts()[0]
    delta = 3.0 * update.u @ update.v
    by = {"w": own[0].weight, "delta": delta, "w_delta": own[0].weight + delta}[score].abs()
    assert by[mask].min() >= by[~mask].max()
    rest = choose_s1(own, PATHS, 0.25, score, "matrix", {})["1.weight"]
    assert own[1].weight.abs()[rest].min() >= own[1].weight.abs()[~rest].max()


def test_a_fused_linear_has_a_block_for_its_update_and_one_for_the_rest():
    sizes = [(block.weight.shape, block.update is None) for block in blocks_of(net()[2])]
    assert sizes == [((16, 8), True), ((8, 8), False)]


def test_what_was_pruned_before_never_comes_back():
    own = net()
    before = choose_s1(own, PATHS, 0.5, "w", "groups", {})
    after = choose_s1(own, PATHS, 0.25, "w_delta", "groups", before)
    assert all(torch.all(before[name][mask]) for name, mask in after.items())
    with pytest.raises(UserError, match=r"keep 0\.2500 already"):
        choose_s1(own, PATHS, 0.5, "w", "groups", after)
