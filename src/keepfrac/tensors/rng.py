"""Counter-based random numbers, and systematic sampling.

A draw is a hash of counters (the run's seed, the step, the place), so that a resumed run or a repeated forward pass
draws the same again, and nothing but the counters has to be remembered. Torch's own random state is not touched.
"""

import torch
from torch import Tensor

_WORD = (1 << 64) - 1


def splitmix64(state: int) -> int:
    """Returns the 64 bits that splitmix64 gives for a state (Steele et al. 2014)."""
    state = (state + 0x9E3779B97F4A7C15) & _WORD
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _WORD
    return state ^ (state >> 31)


def seed32(*counters: int) -> int:
    """Returns 32 bits that depend on all `counters` and their order: each is added to the state."""
    state = 0
    for counter in counters:
        state = splitmix64(state + counter)
    return state >> 32


def seed63(*counters: int) -> int:
    """Returns 63 bits that depend on all `counters` and their order: each is combined by xor with the state."""
    state = 0
    for counter in counters:
        state = splitmix64(state ^ (counter & _WORD))
    return state >> 1


def num_certain(ranked: Tensor, left: Tensor, k: int) -> int:
    """Returns how many units a draw of k proportional to size takes for certain: the largest ones.

    Unit i is certain while its share of the places that are left reaches one: size_i * (k - i) >= the sizes from i on
    together. The shares fall with i.

    Args:
        ranked: (n,) sizes, descending; n > k.
        left: (n,) sums of the sizes from each place on.
        k: number of units to draw.
    """
    places = k - torch.arange(k, device=ranked.device)
    return int((ranked[:k] * places >= left[:k]).long().cumprod(0).sum())


def systematic(sizes: Tensor, total: Tensor, count: int, start: Tensor) -> Tensor:
    """Draws `count` units with probabilities proportional to their sizes: equal steps from a random start.

    Source: Madow 1949. No unit is drawn twice where none is larger than total / count.

    Args:
        sizes: (n,), in the order in which they are passed.
        total: their sum, a scalar.
        count: number of units.
        start: (1,) uniform in [0, 1), float64.

    Returns:
        Positions (count,), ascending.
    """
    points = (start + torch.arange(count, device=sizes.device)) * (total / count)
    return torch.searchsorted(sizes.cumsum(0), points, right=True).clamp_(max=len(sizes) - 1)
