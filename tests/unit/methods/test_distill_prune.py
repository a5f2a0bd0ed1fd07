"""The rate of distill_prune: as every other method's, or held at its peak until the masks are frozen."""

from types import SimpleNamespace

import pytest

from src.finetune import warmup_then_linear
from src.methods.distill_prune import DistillPrune


def rate(progress: float, hold: bool, settled_at: float = 0.7) -> float:
    own = SimpleNamespace(hold_rate=hold, settled_at=settled_at, loop=SimpleNamespace(warmup=0.1))
    method = DistillPrune.__new__(DistillPrune)
    vars(method).update(vars(own))
    return method.schedule(progress)


@pytest.mark.parametrize("progress", [0.0, 0.05, 0.1, 0.5, 0.7, 0.9, 1.0])
def test_without_holding_it_is_the_loops(progress):
    assert rate(progress, hold=False) == warmup_then_linear(progress, 0.1)


def test_it_is_held_until_the_masks_are_frozen_and_then_falls_to_0():
    rates = [rate(progress, hold=True) for progress in (0.0, 0.05, 0.1, 0.4, 0.7, 0.85, 1.0)]
    assert rates == pytest.approx([0.0, 0.5, 1.0, 1.0, 1.0, 0.5, 0.0])


def test_without_recovery_it_never_falls():
    assert rate(1.0, hold=True, settled_at=1.0) == 1.0
