import pytest
import torch

from keepfrac.errors import UserError
from keepfrac.sparse.context import Draw
from keepfrac.sparse.selection.selectors import Selector, choose_units, column_scores, row_scores, shifted_relu_boundary


def pick(scores, k, selector, step=0):
    draw = Draw(seed=3, site=1, step=step)
    return choose_units(scores, len(scores), k, selector, draw, draw.generator(scores.device))


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ({"keep_frac": 0.0}, "keep_frac"),
        ({"keep_frac": 1.5}, "keep_frac"),
        ({"keep_frac": "abc"}, "keep_frac"),
        ({"keep_frac": True}, "keep_frac"),
        ({"unit": "row"}, "unit"),
        ({"rule": "best"}, "rule"),
        ({"norm": "l3"}, "norm"),
        ({"scale": "half"}, "scale"),
        ({"scope": "token"}, "scope"),
        ({"share": 2.0}, "share"),
        ({"coverage": -0.1}, "coverage"),
        ({"rule": "shifted_relu"}, "unit=element"),
        ({"unit": "token", "coverage": 0.5}, "unit=column"),
        ({"rule": "top", "scale": "inverse"}, "rule=random"),
        ({"rule": "mixed", "scale": "inverse", "share": 0}, "share above 0"),
    ],
)
def test_bad_settings_name_what_is_wrong(setting, named):
    with pytest.raises(UserError, match=named):
        Selector(**{"keep_frac": 0.3, **setting})


def test_budget_is_the_ceiling_without_rounding_errors():
    assert Selector(0.1).budget(30) == 3  # 0.1 * 30 = 3.0000000000000004
    assert Selector(0.1).budget(768) == 77
    assert Selector(0.01).budget(5) == 1
    assert Selector(1.0).budget(7) == 7
    assert Selector(0.5).budget(0) == 0


@pytest.mark.parametrize("norm", ["inf", "l1", "l2", "var"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_are_the_norms(norm, dtype, device):
    x = torch.randn(700, 12, device=device).to(dtype)
    exact = x.double()
    expected = {
        "inf": exact.abs().amax(0),
        "l1": exact.abs().sum(0),
        "l2": exact.norm(dim=0),
        "var": exact.var(0, unbiased=False),
    }[norm]
    torch.testing.assert_close(column_scores(x, norm).double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(row_scores(x.t(), norm).double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", ["inf", "l1", "l2", "var"])
def test_padding_does_not_enter_column_scores(norm, device):
    x = torch.randn(600, 12, device=device)
    real = torch.rand(600, device=device) < 0.7
    x[~real] = 100.0
    torch.testing.assert_close(column_scores(x, norm, real), column_scores(x[real], norm), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rule", ["top", "sampled", "mixed", "random", "stratified"])
@pytest.mark.parametrize("k", [0, 1, 7, 29, 30])
@pytest.mark.parametrize("coverage", [0.0, 0.5, 1.0])
def test_every_rule_takes_k_different_units(rule, k, coverage, device):
    scores = torch.rand(30, device=device) ** 8
    scores[:5] = 0
    chosen, _ = pick(scores, k, Selector(0.5, rule=rule, coverage=coverage))
    assert len(set(chosen.tolist())) == k
    assert chosen.tolist() == sorted(chosen.tolist())
    assert all(0 <= place < 30 for place in chosen.tolist())


def test_draws_depend_on_seed_site_and_step_alone():
    scores, selector = torch.ones(100), Selector(0.1, rule="random")

    def chosen(seed, site, step):
        draw = Draw(seed, site, step)
        torch.rand(1)  # the global stream does not matter
        return choose_units(scores, 100, 10, selector, draw, draw.generator(scores.device))[0].tolist()

    assert chosen(1, 2, 3) == chosen(1, 2, 3)
    assert len({str(chosen(*numbers)) for numbers in [(1, 2, 3), (2, 2, 3), (1, 3, 3), (1, 2, 4)]}) == 4


def test_selection_leaves_the_global_random_numbers_alone():
    before = torch.get_rng_state()
    pick(torch.rand(20, generator=torch.Generator()), 5, Selector(0.3, rule="sampled"))
    pick(torch.rand(20, generator=torch.Generator()), 5, Selector(0.3, rule="random", coverage=0.5))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("rule", ["random", "sampled", "mixed", "stratified"])
def test_inverse_weights_are_one_over_the_chance_of_being_kept(rule):
    scores = torch.tensor([8.0, 4.0, 2.0, 1.0, 1.0, 1.0, 0.5, 0.5])
    selector, draws = Selector(0.5, rule=rule, scale="inverse"), 4000
    total, count = torch.zeros(8), torch.zeros(8)
    for step in range(draws):
        chosen, weight = pick(scores, 4, selector, step)
        total[chosen] += weight
        count[chosen] += 1
    torch.testing.assert_close(total / draws, torch.ones(8), atol=0.12, rtol=0)
    if rule == "sampled":  # 8 and 4 are certain, then chances are proportional: 2 of 6
        assert count[:2].tolist() == [draws, draws]
        torch.testing.assert_close(count[2:] / draws, scores[2:] * 2 / 6, atol=0.03, rtol=0)


def test_stratified_takes_one_of_each_stratum():
    scores = torch.arange(11.0).flip(0)  # in order of size already
    strata = [range(2), range(2, 5), range(5, 8), range(8, 11)]
    seen = set()
    for step in range(60):
        chosen, weight = pick(scores, 4, Selector(0.4, rule="stratified", scale="inverse"), step)
        assert all(place in stratum for place, stratum in zip(chosen.tolist(), strata, strict=True))
        assert weight.tolist() == [2, 3, 3, 3]
        seen |= set(chosen.tolist())
    assert seen == set(range(11))


def test_mixed_with_inverse_weights_draws_at_least_one():
    scores, total = torch.tensor([8.0, 4.0, 2.0, 1.0]), torch.zeros(4)
    for step in range(4000):
        chosen, weight = pick(scores, 1, Selector(0.25, rule="mixed", scale="inverse", share=0.4), step)
        total[chosen] += weight
    torch.testing.assert_close(total / 4000, torch.ones(4), atol=0.12, rtol=0)


def test_the_variance_of_columns_with_a_large_mean(device):
    x = torch.randn(600, 12, device=device) + 1e4
    torch.testing.assert_close(column_scores(x, "var").double(), x.double().var(0, unbiased=False), rtol=1e-3, atol=0)


def test_coverage_visits_every_column():
    scores = torch.arange(40.0)
    selector = Selector(0.2, rule="top", coverage=0.5)
    seen = {place for step in range(10) for place in pick(scores, 8, selector, step)[0].tolist()}
    assert seen == set(range(40))  # 4 of 40 per step, 10 steps


def test_shifted_relu_boundary_is_the_normal_quantile(device):
    x = torch.randn(400, 500, device=device) * 3 + 1
    real = torch.rand(400, device=device) < 0.5
    x[~real] = 1000.0
    boundary = shifted_relu_boundary(x, 0.3, real)
    assert abs(float((x[real] > boundary).float().mean()) - 0.3) < 0.005
