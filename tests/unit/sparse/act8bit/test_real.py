"""Fidelity on real weights, tokens and gradients: MiniLM after some steps on film reviews, dropout off."""

import pytest
import torch

from tests.bench.arms import Arm
from tests.bench.ruler import Fidelity


@pytest.fixture(scope="module")
def fidelity():
    found = Fidelity(5, 32, "cpu")
    return found if found.net is not None else pytest.skip("the offline packages of weights and reviews are missing")


@pytest.mark.parametrize(("rows", "keep_frac", "least"), [("wta", 1.0, 0.999), ("wta", 0.3, 0.92), ("grad", 0.3, 0.92)])
def test_fidelity(fidelity, rows, keep_frac, least):
    arm = Arm("late", "late", (keep_frac,), (f"method.rows={rows}",))
    found = fidelity([arm], torch.float32)[arm, keep_frac]
    assert found["error_dx"] < 0.012 and found["cosine_dw"] > least
