"""What a step of a model costs, as it stands."""

import pytest
import torch

import keepfrac
from keepfrac.errors import UserError
from keepfrac.measurement.costs import macs, parameters
from tests.tiny import inputs, tiny

BATCH = {**inputs(), "labels": torch.tensor([0, 1, 2])}


def test_figures_are_of_the_model_as_it_stands_and_nothing_is_left():
    net = tiny(attention="sdpa").train()
    net(**BATCH).loss.backward()
    gradients, state = [p.grad.clone() for p in net.parameters() if p.grad is not None], torch.get_rng_state()
    dense = keepfrac.measure(net, BATCH, times=1)
    assert dense["params"] == parameters(net) > dense["nonzeros"] > 0  # norms begin with a bias of 0
    assert dense["macs"] == macs(net, 9)
    assert dense["peak_bytes"] > dense["saved_bytes"] > 0
    assert dense["step_seconds"] > 0 and dense["forward_seconds"] > 0
    assert net.training and torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, gradients, (p.grad for p in net.parameters() if p.grad is not None)))
    handle = keepfrac.save_less(net, keep_frac=0.3)
    less = keepfrac.measure(net, BATCH, times=1)
    assert less["saved_bytes"] < dense["saved_bytes"] and less["macs"] == dense["macs"]
    handle.restore()
    assert keepfrac.measure(net, BATCH, times=1)["saved_bytes"] == dense["saved_bytes"]


def test_a_frozen_model_has_no_step():
    found = keepfrac.measure(tiny().requires_grad_(False), inputs(), times=1)
    assert found["step_seconds"] is None is found["saved_bytes"]


def test_what_cannot_be_is_said():
    with pytest.raises(UserError, match="times=0 must be >= 1"):
        keepfrac.measure(tiny(), BATCH, times=0)
    with pytest.raises(UserError, match="must have input_ids"):
        keepfrac.measure(tiny(), {"labels": BATCH["labels"]})
