import pytest
import torch

from keepfrac.measurement.peak import peak_bytes

SIZE = 1 << 20  # numbers, 4 MiB


def test_what_lives_at_once_counts(capfd):
    x = torch.ones(SIZE)

    def step():
        a = x + 1
        b = a * 2
        del a
        return b * 3

    assert abs(peak_bytes(step) / x.nbytes - 2) < 0.01
    assert abs(peak_bytes(lambda: x.add_(1)) / x.nbytes) < 0.01
    assert capfd.readouterr().err == ""


def test_gradients_made_anew_count():
    x = torch.ones(SIZE, requires_grad=True)

    def step():
        x.square().sum().backward()

    first = peak_bytes(step)
    assert first > 1.9 * x.nbytes
    assert x.grad is not None


def test_a_step_that_fails_leaves_the_profiler_closed():
    with pytest.raises(ZeroDivisionError):
        peak_bytes(lambda: 1 / 0)
    assert peak_bytes(lambda: torch.ones(SIZE)) > 0
