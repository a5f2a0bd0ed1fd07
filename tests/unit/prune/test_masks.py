import pytest
import torch
from torch import nn

from keepfrac.errors import UserError
from keepfrac.prune.masks import FILE, Masks, n_of_m_mask, top_mask, top_masks


def test_counts_are_exact_with_ties():
    scores = torch.tensor([[1.0, 2.0, 2.0], [2.0, 0.0, 2.0]])
    for kept in range(7):
        assert int(top_mask(scores, kept).sum()) == kept
    assert top_mask(scores, 2).tolist() == [[False, True, True], [False, False, False]]


def test_the_highest_stay():
    scores = torch.randn(50, 7)
    mask = top_mask(scores, 100)
    assert scores[mask].min() > scores[~mask].max()


def test_scopes():
    scores = {"a": torch.rand(10, 10), "b": 10 + torch.rand(10, 10)}
    uniform = top_masks(scores, 0.25, "uniform")
    assert int(uniform["a"].sum()) == int(uniform["b"].sum()) == 25
    both = top_masks(scores, 0.25, "global")
    assert int(both["a"].sum()) == 0 and int(both["b"].sum()) == 50
    floored = top_masks(scores, 0.25, "global", floor=0.07)
    assert int(floored["a"].sum()) == 7 and int(floored["b"].sum()) == 43
    with pytest.raises(UserError, match="floors alone"):
        top_masks(scores, 0.05, "global", floor=0.07)


def test_two_of_four():
    scores = torch.randn(6, 16)
    mask = n_of_m_mask(scores, 2, 4)
    assert (mask.view(6, 4, 4).sum(-1) == 2).all()
    with pytest.raises(UserError, match="2:5"):
        n_of_m_mask(scores, 2, 5)


@pytest.mark.parametrize("scores", [torch.tensor([1.0, float("nan")])])
def test_scores_must_be_numbers(scores):
    with pytest.raises(UserError, match="not a number"):
        top_mask(scores, 1)


def _net_and_masks():
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    return net, Masks({f"{i}.weight": top_mask(net[i].weight.abs(), 10) for i in range(2)})


def test_zeros_stay_through_the_optimizer():
    net, masks = _net_and_masks()
    masks.mask_gradients(net)
    masks.apply_to(net)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        net(torch.randn(5, 8)).square().sum().backward()
        assert (net[0].weight.grad[~dict(masks.items())["0.weight"]] == 0).all()
        optimizer.step()
        masks.apply_to(net)
        masks.mask_moments(net, optimizer)
    for name, mask in masks.items():
        assert torch.equal(net.get_parameter(name) != 0, mask)
        state = optimizer.state[net.get_parameter(name)]
        assert (state["exp_avg"][~mask] == 0).all() and (state["exp_avg_sq"][~mask] == 0).all()
    assert masks.counts() == (20, 96)


def test_masks_are_buffers_and_live_beside_the_model(tmp_path):
    net, masks = _net_and_masks()
    assert Masks.load(tmp_path) is None
    assert masks.save(tmp_path).name == FILE
    again = Masks.load(tmp_path)
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(masks.items(), again.items(), strict=True))
    assert set(masks.state_dict()) == {"0/weight", "1/weight"} and not list(masks.parameters())
    masks.apply_to(net)
    assert torch.equal(net[0].weight != 0, dict(masks.items())["0.weight"])


def test_masks_of_another_model_are_refused(tmp_path):
    net, masks = _net_and_masks()
    with pytest.raises(UserError, match="its mask"):
        masks.apply_to(nn.Sequential(nn.Linear(8, 9), nn.Linear(9, 4)))
    with pytest.raises(UserError, match="the model has not"):
        masks.apply_to(net[0])
    with pytest.raises(UserError, match="must be bool"):
        Masks({"weight": torch.ones(2)})
    (tmp_path / FILE).write_bytes(b"no")
    with pytest.raises(UserError, match="cannot be read"):
        Masks.load(tmp_path)


def test_masks_follow_new_content():
    net, masks = _net_and_masks()
    masks.mask_gradients(net)
    masks.update({"0.weight": torch.zeros(8, 8, dtype=torch.bool)})
    net(torch.randn(2, 8)).sum().backward()
    assert (net[0].weight.grad == 0).all()
