"""Means, spreads and intervals over seeds. Pure functions of floats."""

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

FEW_ROWS = 100
"""A score on fewer test rows moves by more than a point with one of them."""
_Z = statistics.NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Sample:
    """What is known of a quantity measured once per seed.

    Attributes:
        n: number of values.
        mean: None without values.
        sd: standard deviation (n - 1 in the denominator); None where n < 2.
        se: standard error of the mean, sd / sqrt(n); None where n < 2.
    """

    n: int
    mean: float | None = None
    sd: float | None = None
    se: float | None = None


@dataclass(frozen=True)
class Difference:
    """A mean paired difference with its confidence interval (low, high are None where n < 2)."""

    n: int
    mean: float
    low: float | None = None
    high: float | None = None


def summarise(values: Iterable[float | None]) -> Sample:
    """Returns mean, standard deviation, standard error and n of the values that are numbers."""
    numbers = [value for value in values if value is not None and math.isfinite(value)]
    if len(numbers) < 2:
        return Sample(len(numbers), *numbers)
    sd = statistics.stdev(numbers)
    return Sample(len(numbers), statistics.fmean(numbers), sd, sd / math.sqrt(len(numbers)))


def paired(ours: Mapping[int, float], dense: Mapping[int, float], confidence: float = 0.95) -> Difference | None:
    """Returns the mean of ours - dense over the seeds that both have, with a Student t interval.

    Args:
        ours: score by seed.
        dense: the baseline's score by seed.
        confidence: coverage of the interval, in (0, 1).

    Returns:
        None where no seed is shared; no interval where only one is.
    """
    sample = summarise(ours[seed] - dense[seed] for seed in sorted(ours.keys() & dense.keys()))
    if sample.mean is None:
        return None
    if sample.se is None:
        return Difference(sample.n, sample.mean)
    # here, because it takes longer to import than a report of single seeds takes to make
    from scipy.special import stdtrit

    half = float(stdtrit(sample.n - 1, (1 + confidence) / 2)) * sample.se
    return Difference(sample.n, sample.mean, sample.mean - half, sample.mean + half)


def wilson(p: float, rows: int) -> tuple[float, float]:
    """Returns the 95 % interval of an accuracy p measured on `rows` independent rows; Wilson 1927."""
    shrunk = 1 + _Z**2 / rows
    middle = (p + _Z**2 / (2 * rows)) / shrunk
    half = _Z * math.sqrt(max(p * (1 - p), 0.0) / rows + (_Z / (2 * rows)) ** 2) / shrunk
    return max(middle - half, 0.0), min(middle + half, 1.0)


def accuracy_error(p: float, rows: int) -> float:
    """Returns the standard error of an accuracy p measured on one test set of `rows` independent rows.

    Where p is 0 or 1, at which sqrt(p (1 - p) / rows) would say that nothing is uncertain, it is the error of a normal
    distribution whose 95 % interval is as wide as Wilson's.
    """
    if 0 < p < 1:
        return math.sqrt(p * (1 - p) / rows)
    low, high = wilson(min(max(p, 0.0), 1.0), rows)
    return (high - low) / (2 * _Z)
