"""The rate of distill_prune that is held at its peak until the masks are frozen."""

from types import SimpleNamespace

import pytest

from keepfrac.methods.distill_prune import DistillPrune


def rates(settled_at: float, *progress: float) -> list[float]:
    method = DistillPrune.__new__(DistillPrune)
    vars(method).update(settled_at=settled_at, loop=SimpleNamespace(warmup=0.1))
    return [method._held(one) for one in progress]


def test_it_is_held_until_the_masks_are_frozen_and_then_falls_to_0():
    found = rates(0.7, 0.0, 0.05, 0.1, 0.4, 0.7, 0.85, 1.0)
    assert found == pytest.approx([0.0, 0.5, 1.0, 1.0, 1.0, 0.5, 0.0])


def test_without_recovery_it_never_falls():
    assert rates(1.0, 0.5, 1.0) == [1.0, 1.0]
