"""How a target moves from the dense model to the wanted one, and a rate, as functions of the share of training done."""

from __future__ import annotations


def ramp(progress: float, start: float, end: float) -> float:
    """Returns 0 up to `start`, 1 from `end` on, linear between: min(1, max(0, (progress - start) / (end - start)))."""
    if not 0.0 <= start <= end:
        raise ValueError(f"a ramp from {start} to {end}: it must hold 0 <= start <= end")
    if progress >= end:
        return 1.0
    return max(0.0, (progress - start) / (end - start))


def linear(progress: float, final: float, start: float, end: float, first: float = 1.0) -> float:
    """Returns the keep target at `progress`, `first` before `start`, `final` from `end` on, falling linearly.

    t(step) of Wang et al. 2020 (FLOP, section 3.2) and of Xia et al. 2022 (CoFi), written for what is kept; `first` is
    1 but for a model that does not begin as the dense one.
    """
    return first - (first - final) * ramp(progress, start, end)


def cubic(progress: float, final: float, start: float, end: float) -> float:
    """Returns the keep target with a cubic fall: s = s_f (1 - (1 - ramp)^3), eq. (1) of Zhu & Gupta 2017, kept = 1 - s.

    Fast at first, slow near the end, where each weight matters more.
    """
    return 1.0 - (1.0 - final) * (1.0 - (1.0 - ramp(progress, start, end)) ** 3)


def constant_rate(progress: float, warmup: float) -> float:
    """Returns the factor of a rate: linear from 0 to 1 over `warmup`, then 1."""
    return progress / warmup if progress < warmup else 1.0


def warmup_then_linear(progress: float, warmup: float) -> float:
    """Returns the factor of a rate: linear from 0 to 1 over `warmup`, then linear to 0 at progress 1."""
    return progress / warmup if progress < warmup else max(0.0, (1.0 - progress) / (1.0 - warmup))


def inverse_root_rate(progress: float, warmup: float) -> float:
    """Returns the factor of a rate: linear to 1 over `warmup`, then sqrt(warmup / progress).

    Vaswani et al. 2017, section 5.3.

    Written for a peak of 1: Noam's peak is d^-0.5 warmup_steps^-0.5.
    """
    if progress < warmup:
        return progress / warmup
    return (warmup / progress) ** 0.5 if progress else 1.0


RATES = {"constant": constant_rate, "linear": warmup_then_linear, "inverse_root": inverse_root_rate}
