from itertools import pairwise

import pytest

from keepfrac.prune.schedules import RATES, cubic, linear


@pytest.mark.parametrize("name", RATES)
def test_a_rate_rises_to_1_over_its_warmup_and_never_above(name):
    rate = RATES[name]
    path = [rate(step / 1000, 0.1) for step in range(1001)]
    assert path[0] == 0 and path[50] == pytest.approx(0.5) and path[100] == max(path) == pytest.approx(1.0)
    assert rate(0.0, 0.0) == 1.0


def test_inverse_root_is_noam_over_its_peak():
    width, warmup, total, lr = 768, 200, 105232, 5.0
    peak = lr / (width * warmup) ** 0.5
    for step in (1, 100, 200, 4000, 105232):
        noam = lr * width**-0.5 * min(step**-0.5, step * warmup**-1.5)
        assert peak * RATES["inverse_root"](step / total, warmup / total) == pytest.approx(noam)
    assert peak == pytest.approx(0.01276, abs=1e-5)


def test_targets_start_dense_and_end_at_the_wanted_share():
    for schedule in (linear, cubic):
        path = [schedule(p / 100, 0.05, 0.1, 0.6) for p in range(101)]
        assert path[:11] == [1.0] * 11 and path[60:] == pytest.approx([0.05] * 41)
        assert all(a >= b for a, b in pairwise(path))


def test_a_model_that_was_cut_begins_with_what_it_has():
    path = [linear(p / 100, 0.2, 0.1, 0.6, 0.4) for p in range(101)]
    assert path[:11] == [0.4] * 11 and path[35] == pytest.approx(0.3) and path[60:] == pytest.approx([0.2] * 41)


def test_the_published_cubic_ramp():
    removed = [100 * (1 - cubic(p, 0.05, 0.0, 1.0)) for p in (0.10, 0.25, 0.50, 0.75)]
    assert removed == pytest.approx([25.7, 54.9, 83.1, 93.5], abs=0.05)


def test_a_ramp_of_no_length_is_a_step():
    assert linear(0.0, 0.3, 0.0, 0.0) == pytest.approx(0.3)
    with pytest.raises(ValueError, match="ramp"):
        linear(0.0, 0.3, 0.5, 0.2)
