import pytest
import torch
from torch import nn

from keepfrac.errors import UserError
from keepfrac.prune.factorize import (
    FactorizedLinear,
    break_even_rank,
    decompose,
    dense_weight,
    factorize,
    factorize_,
    input_moments,
)


@pytest.mark.parametrize(("inputs", "outputs"), [(12, 12), (12, 30), (30, 12)])
def test_full_rank_is_the_dense_linear_and_the_svd_is_thin(inputs, outputs):
    linear, x = nn.Linear(inputs, outputs), torch.randn(7, inputs)
    twin = factorize(linear, 12)
    assert torch.allclose(twin(x), linear(x), atol=1e-5)
    assert twin.p.weight.shape == (12, inputs) and twin.q.weight.shape == (outputs, 12)
    with pytest.raises(UserError, match="must be 1 to 12"):
        factorize(linear, 13)


def test_truncation_is_the_best_of_its_rank():
    weight = torch.randn(9, 14, dtype=torch.float64)
    p, q, values = decompose(weight, 4)
    error = (weight - q @ p).square().sum()
    assert torch.isclose(error, torch.linalg.svdvals(weight)[4:].square().sum())
    assert torch.allclose(p @ p.T, torch.eye(4, dtype=torch.float64), atol=1e-10) and values.diff().max() <= 0


def test_whitening_is_better_on_the_activations():
    x = torch.randn(500, 14, dtype=torch.float64) @ torch.diag(torch.logspace(0, 2, 14, dtype=torch.float64))
    weight = torch.randn(9, 14, dtype=torch.float64)

    def error(factors):
        p, q, _ = factors
        return (x @ (weight - q @ p).T).square().sum()

    assert error(decompose(weight, 4, x.T @ x / 500)) < 0.9 * error(decompose(weight, 4))


def test_whitening_survives_a_dead_input():
    moments = torch.diag(torch.tensor([1.0, 2.0, 0.0, 3.0], dtype=torch.float64))
    p, q, _ = decompose(torch.randn(5, 4), 4, moments)
    assert torch.isfinite(p).all() and torch.isfinite(q).all()


def test_the_dense_weight_of_two_factors_is_their_product():
    twin, x = FactorizedLinear(10, 8, 3), torch.randn(6, 10)
    assert torch.allclose(x @ dense_weight(twin).T + twin.q.bias, twin(x), atol=1e-6)


def test_break_even():
    assert break_even_rank(768, 768) == 384 and break_even_rank(768, 3072) == 614


def test_a_model_is_factorised_in_place():
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 24, bias=False))
    batches = [torch.randn(5, 8) for _ in range(4)]
    moments = input_moments(net, ["0", "2"], batches, net)
    x = torch.cat(batches).double()
    assert torch.allclose(moments["0"], x.T @ x / 20, atol=1e-5)
    assert factorize_(net, ["0", "2"], None, moments) == {"0": 4, "2": 6}
    assert net[2].q.bias is None and net(torch.randn(2, 8)).shape == (2, 24)


def test_what_cannot_be_factorised_is_refused():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    with pytest.raises(UserError, match="matches nothing"):
        factorize_(net, [], 2)
    with pytest.raises(UserError, match="ReLU"):
        factorize_(net, ["1"], 2)
    with pytest.raises(UserError, match="no batch"):
        input_moments(net, ["0"], [], net)
