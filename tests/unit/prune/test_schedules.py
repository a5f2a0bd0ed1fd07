import pytest

from keepfrac.prune.schedules import RATES


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
