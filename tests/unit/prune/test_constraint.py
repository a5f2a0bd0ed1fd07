import pytest
import torch

from keepfrac.prune.constraint import AugmentedLagrangian, ProportionalIntegral


def test_multipliers_ascend_along_the_violation():
    constraint = AugmentedLagrangian()
    optimizer = torch.optim.Adam(constraint.parameters(), lr=0.1, maximize=True)
    for violation, sign in ((0.3, 1), (-0.3, -1)):
        before = constraint.values()
        for _ in range(20):
            optimizer.zero_grad()
            constraint.loss(torch.tensor(violation)).backward()
            optimizer.step()
        after = constraint.values()
        assert (after["lambda1"] - before["lambda1"]) * sign > 0
        assert after["lambda2"] >= before["lambda2"]


def _toy(constraint, parameters, steps=3000):
    """min (x - 3)^2 subject to x = 1."""
    x = torch.tensor(3.0, requires_grad=True)
    groups = [{"params": [x], "lr": 0.02}]
    if parameters:
        groups.append({"params": parameters, "lr": 0.02, "maximize": True})
    optimizer = torch.optim.Adam(groups)
    for _ in range(steps):
        optimizer.zero_grad()
        violation = x - 1.0
        ((x - 3) ** 2 + constraint.loss(violation)).backward()
        optimizer.step()
        constraint.after_step(violation.item())
    return x.item(), constraint.values()


def test_the_lagrangian_reaches_the_constraint_on_a_toy_problem():
    constraint = AugmentedLagrangian()
    x, values = _toy(constraint, list(constraint.parameters()))
    assert x == pytest.approx(1.0, abs=0.02)
    # at the solution the multiplier balances the loss: d/dx (x-3)^2 = -4
    assert values["lambda1"] == pytest.approx(4.0, abs=0.2)


def _stuck(anti_windup):
    """Lowest violation of a share that follows the multipliers only once they are above 1, as a wide open gate does."""
    constraint = AugmentedLagrangian(anti_windup)
    optimizer = torch.optim.Adam(constraint.parameters(), lr=0.1, maximize=True)
    violation, lowest = 0.2, 0.2
    for _ in range(200):
        optimizer.zero_grad()
        constraint.loss(torch.tensor(violation)).backward()
        optimizer.step()
        for multiplier in constraint.after_step(violation):
            optimizer.state[multiplier]["exp_avg"].zero_()
        pull = constraint.values()["lambda1"] + 2 * constraint.values()["lambda2"] * violation
        violation -= 0.01 * max(-1.0, min(1.0, pull)) * (abs(pull) > 1)
        lowest = min(lowest, violation)
    return lowest


def test_multipliers_that_begin_anew_do_not_overshoot():
    assert _stuck(anti_windup=False) < -0.1 < -0.03 < _stuck(anti_windup=True)


def test_multipliers_begin_anew_only_below_the_target():
    constraint = AugmentedLagrangian(anti_windup=True)
    constraint.lambda1.data.fill_(2.0)
    assert constraint.after_step(0.1) == [] and constraint.values()["lambda1"] == 2.0
    assert constraint.after_step(-0.1) == [constraint.lambda1] and constraint.values()["lambda1"] == 0.0
    constraint.lambda1.data.fill_(-2.0)
    assert constraint.after_step(-0.1) == [] and constraint.values()["lambda1"] == -2.0


def test_the_controller_reaches_it_too_without_a_gradient():
    constraint = ProportionalIntegral(proportional=1.0, integral=0.02, quadratic=10.0, limit=100.0)
    x, values = _toy(constraint, [])
    assert x == pytest.approx(1.0, abs=0.02) and values["lambda1"] == pytest.approx(4.0, abs=0.3)


def test_the_controller_does_not_wind_up():
    constraint = ProportionalIntegral(0.0, 1.0, 0.0, limit=2.0)
    for _ in range(1000):
        constraint.after_step(0.5)
    assert constraint.lambda1() <= 2.0
    for _ in range(5):
        constraint.after_step(-0.5)
    assert constraint.lambda1() < 0.1


def test_multipliers_resume(tmp_path):
    first, second = (ProportionalIntegral(1.0, 0.1, 1.0, 5.0) for _ in range(2))
    first.after_step(0.25)
    second.load_state_dict(first.state_dict())
    assert second.values() == first.values()
