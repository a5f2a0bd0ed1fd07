"""Counter-based seeds, and systematic sampling."""

import torch

from keepfrac.tensors.rng import num_certain, seed32, seed63, splitmix64, systematic


def test_splitmix64_is_the_published_one():
    """The first numbers of the generator that begins at 1234567: a fixed step from state to state."""
    gamma, state, found = 0x9E3779B97F4A7C15, 1234567, []
    for _ in range(3):
        found.append(splitmix64(state))
        state += gamma
    assert found == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_seeds_spread():
    seeds = {seed32(a, b, c) for a in range(20) for b in range(20) for c in range(20)}
    assert len(seeds) == 8000
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert seed32(-1, 2**70) >= 0


def test_a_seed_depends_on_every_counter_and_their_order():
    given = ((), (0,), (1,), (0, 1), (1, 0), (0, 0), (-1,))
    assert len({seed63(*one) for one in given}) == len({seed32(*one) for one in given}) == 7
    assert all(0 <= seed63(*one) < 1 << 63 for one in given)


def test_draws_kept_from_earlier_versions():
    """Both hashes seed selections of runs that may be resumed."""
    assert seed32(3, 1, 4) == 3631829867 and seed63(3, 1, 4) == 1757395694669422854


def test_what_is_certain_and_what_is_drawn():
    sizes = torch.tensor([8.0, 4.0, 1.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    left = sizes.flip(0).cumsum(0).flip(0)
    assert num_certain(sizes, left, 3) == 2
    hits = torch.zeros(4)
    for step in range(100):
        start = torch.tensor([step / 100], dtype=torch.float64)
        hits.index_add_(0, systematic(sizes[2:], left[2], 2, start), torch.ones(2))
    assert hits.tolist() == [50, 50, 50, 50]
