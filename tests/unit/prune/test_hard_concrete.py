import pytest
import torch

from keepfrac.prune.hard_concrete import deterministic, log_alpha_of, open_probability, sample


@pytest.mark.parametrize("log_alpha", [-2.0, 0.0, 1.5])
@pytest.mark.parametrize("beta", [2 / 3, 1.0])
def test_open_probability_is_the_share_of_open_samples(log_alpha, beta):
    a = torch.full((200_000,), log_alpha)
    z = sample(a, torch.rand(a.shape), beta)
    assert (z > 0).float().mean().item() == pytest.approx(open_probability(a[0], beta).item(), abs=0.005)
    assert z.min() == 0 and z.max() <= 1 and (z == 1).any()


@pytest.mark.parametrize("probability", [0.05, 0.5, 0.995])
@pytest.mark.parametrize("beta", [2 / 3, 1.0])
def test_a_wanted_open_probability_is_met(probability, beta):
    a = torch.tensor(log_alpha_of(probability, beta))
    assert open_probability(a, beta).item() == pytest.approx(probability, rel=1e-5)


def test_published_values():
    # Louizos et al.: a = 0 at beta 2/3 is open with .832; the usual clamp at log .01 leaves .0471; FLOP's init 5 is 1
    assert open_probability(torch.tensor(0.0), 2 / 3).item() == pytest.approx(0.832, abs=5e-4)
    assert open_probability(torch.tensor(0.01).log(), 2 / 3).item() == pytest.approx(0.0471, abs=5e-5)
    assert deterministic(torch.tensor(log_alpha_of(0.995, 2 / 3))).item() == 1.0
    assert deterministic(torch.tensor([5.0, 0.0, -5.0])).tolist() == pytest.approx([1.0, 0.5, 0.0])


def test_samples_are_differentiable_and_fp32():
    a = torch.zeros(8, dtype=torch.bfloat16, requires_grad=True)
    z = sample(a, torch.full((8,), 0.5), 2 / 3)
    z.sum().backward()
    assert z.dtype == torch.float32 and a.grad.abs().min() > 0


@pytest.mark.parametrize("probability", [0.0, 1.0, -1.0])
def test_an_impossible_probability_is_refused(probability):
    with pytest.raises(ValueError, match="inside"):
        log_alpha_of(probability, 1.0)
