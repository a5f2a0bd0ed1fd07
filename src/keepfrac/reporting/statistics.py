"""Means, spreads and intervals over seeds. Pure functions of floats."""

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


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
    """Mean, standard deviation, standard error and n of the values that are numbers."""
    numbers = [value for value in values if value is not None and math.isfinite(value)]
    if not numbers:
        return Sample(0)
    if len(numbers) == 1:
        return Sample(1, numbers[0])
    sd = statistics.stdev(numbers)
    return Sample(len(numbers), statistics.fmean(numbers), sd, sd / math.sqrt(len(numbers)))


def paired(ours: Mapping[int, float], dense: Mapping[int, float], confidence: float = 0.95) -> Difference | None:
    """Mean of ours - dense over the seeds that both have, with a t interval.

    Args:
        ours: score by seed.
        dense: the baseline's score by seed.
        confidence: coverage of the interval, in (0, 1).

    Returns:
        None where no seed is shared; no interval where only one is.
    """
    seeds = sorted(set(ours) & set(dense))
    sample = summarise(ours[seed] - dense[seed] for seed in seeds)
    if sample.mean is None:
        return None
    if sample.se is None:
        return Difference(sample.n, sample.mean)
    half = t_quantile(confidence, sample.n - 1) * sample.se
    return Difference(sample.n, sample.mean, sample.mean - half, sample.mean + half)


def t_within(t: float, df: int) -> float:
    """P(|T| <= t) for Student's t with `df` degrees of freedom: Abramowitz and Stegun 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(df))
    sine, cosine = math.sin(angle), math.cos(angle)
    if df == 1:
        return 2 * angle / math.pi
    term = total = cosine if df % 2 else 1.0
    for k in range(3 if df % 2 else 2, df - 1, 2):
        term *= cosine * cosine * (k - 1) / k
        total += term
    return 2 / math.pi * (angle + sine * total) if df % 2 else sine * total


def t_quantile(confidence: float, df: int) -> float:
    """The t for which P(|T| <= t) = confidence, by bisection (no scipy, which takes a second to import)."""
    low, high = 0.0, 1.0
    while t_within(high, df) < confidence:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if t_within(middle, df) < confidence else (low, middle)
    return high


def accuracy_error(p: float, rows: int) -> float:
    """Standard error of an accuracy p measured on one test set of `rows` independent rows."""
    return math.sqrt(max(p * (1 - p), 0.0) / rows)
