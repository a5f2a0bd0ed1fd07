"""How a target moves from the dense model to the wanted one, as a function of the share of training done."""

from __future__ import annotations


def ramp(progress: float, start: float, end: float) -> float:
    """0 up to `start`, 1 from `end` on, linear between: min(1, max(0, (progress - start) / (end - start)))."""
    if not 0.0 <= start <= end:
        raise ValueError(f"a ramp from {start} to {end}: it must hold 0 <= start <= end")
    if progress >= end:
        return 1.0
    return max(0.0, (progress - start) / (end - start))


def linear(progress: float, final: float, start: float, end: float) -> float:
    """The keep target at `progress`, 1 before `start`, `final` from `end` on, falling linearly.

    t(step) of Wang et al. 2020 (FLOP, section 3.2) and of Xia et al. 2022 (CoFi), written for what is kept.
    """
    return 1.0 - (1.0 - final) * ramp(progress, start, end)


def cubic(progress: float, final: float, start: float, end: float) -> float:
    """The keep target with a cubic fall: s = s_f (1 - (1 - ramp)^3), eq. (1) of Zhu & Gupta 2017, kept = 1 - s.

    Fast at first, slow near the end, where each weight matters more.
    """
    return 1.0 - (1.0 - final) * (1.0 - (1.0 - ramp(progress, start, end)) ** 3)
