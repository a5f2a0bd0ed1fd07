"""S2's positions: always exactly N, where the selector says."""

import pytest
import torch

from keepfrac.adapters.selection import SELECTORS, residual, select_positions
from keepfrac.prune.masks import top_mask


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def low_rank(rows=40, columns=24, rank=2) -> torch.Tensor:
    draw = generator(5)
    return torch.randn(rows, rank, generator=draw) @ torch.randn(rank, columns, generator=draw)


@pytest.mark.parametrize("selector", SELECTORS)
@pytest.mark.parametrize("weight", [low_rank(), torch.zeros(40, 24), torch.ones(24, 40)], ids=["low", "zero", "ties"])
@pytest.mark.parametrize("count", [0, 1, 64, 960])
def test_exactly_n_distinct_positions(selector, weight, count):
    """Also where the residual has fewer entries than N: there the original's mask becomes all ones."""
    found = select_positions(weight, count, selector, 2, generator(), weight.square())
    assert found.dtype == torch.int32 and len(found) == count == len(set(found.tolist()))
    assert torch.equal(found, found.sort().values)


@pytest.mark.parametrize("selector", ["grebsmo", "svd_residual"])
def test_what_a_low_rank_matrix_does_not_explain_is_found(selector):
    weight = low_rank()
    planted = torch.tensor([3, 100, 333, 901])
    weight.view(-1)[planted] += 20.0
    assert torch.equal(select_positions(weight, 4, selector, 2, generator()).long(), planted)


def test_magnitude_gradient_and_random():
    weight, squares = torch.randn(8, 8), torch.rand(8, 8)
    for selector, score in (("magnitude", weight.abs()), ("gradient", squares)):
        expected = torch.nonzero(top_mask(score, 5).flatten()).flatten()
        assert torch.equal(select_positions(weight, 5, selector, 2, generator(), squares).long(), expected)
    one, two, three = (select_positions(weight, 5, "random", 2, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, two) and not torch.equal(one, three)


def test_the_greedy_decomposition_grows_to_its_rank_and_stays():
    weight = torch.randn(30, 20, generator=generator(1))
    at = {rank: residual(weight, rank, generator()).norm() for rank in (1, 6, 11, 20)}
    assert at[1] > at[6] > at[11] > at[20]
    best = torch.linalg.svdvals(weight)[11:].square().sum().sqrt()
    assert best <= at[11] + 1e-4
