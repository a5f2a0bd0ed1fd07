import pytest
import torch

from keepfrac.errors import UserError
from keepfrac.prune.elements import ElementScores, SparsityPattern, masks_of, with_regrowth
from keepfrac.prune.masks import num_kept
from keepfrac.training.weight_pruning import PruningSchedule

FREE = SparsityPattern("uniform", 0.0, "element", 1)


def everything(scores):
    return {name: torch.ones_like(s, dtype=torch.bool) for name, s in scores.items()}


@pytest.mark.parametrize("scope", ["uniform", "global"])
def test_counts_are_exact_also_where_all_scores_tie(scope):
    scores = {"a": torch.zeros(6, 10), "b": torch.ones(4, 10)}
    for keep in (0.05, 0.5, 1.0):
        masks = masks_of(scores, everything(scores), keep, SparsityPattern(scope, 0.0, "element", 1))
        found = {name: int(mask.sum()) for name, mask in masks.items()}
        if scope == "uniform":
            assert found == {"a": num_kept(keep, 60), "b": num_kept(keep, 40)}
        else:
            assert sum(found.values()) == num_kept(keep, 100) and found["b"] == min(40, num_kept(keep, 100))


def test_what_is_pruned_stays_pruned():
    scores = {"a": torch.arange(100.0).view(10, 10)}
    present = {"a": scores["a"] < 40}  # the highest scores are gone
    masks = masks_of(scores, present, 0.2, FREE)
    assert int(masks["a"].sum()) == 20 and not (masks["a"] & ~present["a"]).any()
    assert torch.equal(masks_of(scores, present, 0.9, FREE)["a"], present["a"])


def test_the_floor_of_each_matrix():
    scores = {"a": torch.rand(10, 10), "b": 10 + torch.rand(10, 10)}
    masks = masks_of(scores, everything(scores), 0.2, SparsityPattern("global", 0.5, "element", 1))
    assert int(masks["a"].sum()) == 10 and int(masks["b"].sum()) == 30


@pytest.mark.parametrize(("structure", "n", "m"), [("2:4", 2, 4), ("4:8", 4, 8)])
def test_n_of_m_on_the_way_and_at_the_end(structure, n, m):
    pattern, scores = SparsityPattern("global", 0.0, structure, 1), {"a": torch.rand(6, 16), "b": torch.rand(4, 8)}
    present = everything(scores)
    for keep in (0.9, 0.7, 0.5):
        present = masks_of(scores, present, keep, pattern)
        assert sum(int(mask.sum()) for mask in present.values()) == num_kept(keep, 128)
        assert all((mask.view(len(mask), -1, m).sum(-1) >= n).all() for mask in present.values())
    best = scores["a"].view(6, -1, m).topk(n).indices.sort(-1).values
    assert torch.equal(present["a"].view(6, -1, m).nonzero()[:, 2].view(6, -1, n), best)


def test_blocks():
    scores = {"a": torch.rand(8, 12)}
    mask = masks_of(scores, everything(scores), 1 / 3, SparsityPattern("uniform", 0.0, "block", 4))["a"]
    means = scores["a"].view(2, 4, 3, 4).mean((1, 3))
    blocks = mask.view(2, 4, 3, 4).float().mean((1, 3))
    assert set(blocks.flatten().tolist()) == {0.0, 1.0} and torch.equal(
        blocks.bool(), means >= means.flatten().topk(2).values[-1]
    )
    with pytest.raises(UserError, match="8 x 12 cannot be divided"):
        masks_of(scores, everything(scores), 0.5, SparsityPattern("uniform", 0.0, "block", 5))


def test_regrowth_takes_the_largest_gradients():
    scores, growth = {"a": torch.arange(100.0).view(10, 10)}, {"a": torch.zeros(10, 10)}
    growth["a"][0] = -5.0
    present = {"a": scores["a"] >= 60}
    mask = with_regrowth(scores, growth, present, 0.4, 0.25, FREE)["a"]
    assert int(mask.sum()) == 40 and mask[0].all() and mask[7:].all() and not mask[1:7].any()


def test_scores():
    weight, gradients = torch.randn(4, 5), torch.randn(3, 4, 5)
    scores = {kind: ElementScores(kind, 0.9, {"x.w": weight}) for kind in ("magnitude", "movement", "fisher")}
    for kind in ("movement", "fisher"):
        for gradient in gradients:
            scores[kind].observe("x.w", weight, gradient)
    torch.testing.assert_close(scores["magnitude"].of("x.w", weight), weight.abs())
    torch.testing.assert_close(scores["movement"].of("x.w", weight), -(weight * gradients.sum(0)))
    average = sum(0.1 * 0.9 ** (2 - i) * g.square() for i, g in enumerate(gradients))
    torch.testing.assert_close(scores["fisher"].of("x.w", weight), weight.square() * average)
    assert not scores["magnitude"].state_dict() and scores["fisher"].state_dict()


@pytest.mark.parametrize("total", [1, 3, 10, 57, 99, 100, 1250])
def test_the_pace_ends_at_what_is_asked_also_in_few_steps(total):
    pace = PruningSchedule(0.05, 0.7, 100)
    targets = [pace.target(done, total, 0.05) for done in range(1, total + 1)]
    shares = [share for share in targets if share is not None]
    assert shares[-1] == 0.05 and shares == sorted(shares, reverse=True)
    assert all(share is None for share in targets[: int(0.05 * total)])
    assert all(share == 0.05 for done, share in enumerate(targets, 1) if done >= 0.7 * total)
    if total == 1250:
        assert 90 <= sum(share > 0.05 for share in shares) <= 110
