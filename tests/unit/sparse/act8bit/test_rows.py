"""The choice of rows: budgets, exact cases, and estimators that are right in the mean."""

import pytest
import torch

from keepfrac.sparse.act8bit.weight_gradients import choose_rows, nonzero_rows


def gradient(rows=40, width=6, zeros=0, seed=0):
    """Rows of very different size, the last `zeros` of them zero; and inputs."""
    generator = torch.Generator().manual_seed(seed)
    g = (
        torch.randn(rows, width, generator=generator)
        * torch.logspace(-2, 1, rows)[torch.randperm(rows, generator=generator)][:, None]
    )
    g[rows - zeros :] = 0
    return g, torch.randn(rows, 5, generator=generator)


def estimate(g, x, chosen):
    if chosen.index is None:
        return g.T @ x
    weight = torch.ones(len(chosen.index)) if chosen.weight is None else chosen.weight
    return (g[chosen.index] * weight[:, None]).T @ x[chosen.index]


@pytest.mark.parametrize("rule", ["wta", "grad", "random"])
@pytest.mark.parametrize("budget", [1, 7, 39])
def test_the_budget_holds_and_rows_are_ascending_and_different(rule, budget):
    g, _ = gradient(rows=60, zeros=20)
    for seed in range(20):
        chosen = choose_rows(g.norm(dim=1), budget, rule, seed)
        assert chosen.count(60) == budget == len(set(chosen.index.tolist()))
        assert (chosen.index.diff() > 0).all() and chosen.index.max() < 40


@pytest.mark.parametrize("rule", ["wta", "grad", "random"])
def test_few_live_rows_are_taken_whole_and_unscaled(rule):
    g, x = gradient(rows=60, zeros=50)
    chosen = choose_rows(g.norm(dim=1), 10, rule, 0)
    assert chosen.weight is None and torch.equal(chosen.index, torch.arange(10))
    assert torch.allclose(estimate(g, x, chosen), g.T @ x)


def test_all_rows_where_the_budget_allows_or_a_norm_is_not_finite():
    g, _ = gradient()
    assert choose_rows(g.norm(dim=1), 40, "wta", 0).index is None
    norms = g.norm(dim=1)
    norms[3] = torch.nan
    assert choose_rows(norms, 5, "grad", 0).index is None and 3 in nonzero_rows(norms)


def test_no_live_row_gives_no_row():
    assert choose_rows(torch.zeros(8), 3, "wta", 0).index.numel() == 0


@pytest.mark.parametrize("rule", ["wta", "random"])
@pytest.mark.parametrize("budget", [1, 4, 20])
def test_sampling_rules_are_right_in_the_mean(rule, budget):
    g, x = gradient(zeros=5)
    dense, norms, draws = g.T @ x, g.norm(dim=1), 1000
    estimates = torch.stack([estimate(g, x, choose_rows(norms, budget, rule, seed)) for seed in range(draws)])
    error = (estimates.mean(0) - dense).norm()
    standard_error = (estimates.var(0).sum() / draws).sqrt()
    assert error < 3 * standard_error + 1e-5 * dense.norm()


def test_wta_has_less_variance_than_random():
    g, x = gradient()
    dense, norms = g.T @ x, g.norm(dim=1)
    errors = {
        rule: torch.stack(
            [(estimate(g, x, choose_rows(norms, 10, rule, seed)) - dense).norm() for seed in range(100)]
        ).mean()
        for rule in ("wta", "random")
    }
    assert errors["wta"] < 0.5 * errors["random"]


def test_grad_takes_the_largest():
    norms = torch.tensor([1.0, 5.0, 3.0, 4.0])
    assert choose_rows(norms, 2, "grad", 0).index.tolist() == [1, 3]


def test_a_seed_gives_the_same_rows_again():
    norms = gradient()[0].norm(dim=1)
    one, again, other = (choose_rows(norms, 5, "random", seed) for seed in (1, 1, 2))
    assert torch.equal(one.index, again.index) and not torch.equal(one.index, other.index)
