"""In the company of what training brings: accumulation, checkpointing, autocast, resume."""

import pytest
import torch

from tests.unit.sparse.act8bit.nets import batch, converted, error, gradients, network, quiet

SETTINGS = {"keep_frac": 0.4, "store": "8bit"}


def test_steps_draw_different_masks_and_a_resumed_run_the_same():
    data, net, resumed = batch(), quiet(network(p=0.2)), quiet(network(p=0.2))
    handle = converted(net, **SETTINGS)
    first = gradients(net, data)[1]
    state = handle.rng_state()
    second, third = (gradients(net, data)[1] for _ in range(2))
    assert error(second, first) > 1e-3 and error(third, second) > 1e-3
    handle = converted(resumed, **SETTINGS, selection_seed=99)
    handle.set_rng_state(state)
    assert error(gradients(resumed, data)[1], second) == 0 and error(gradients(resumed, data)[1], third) == 0
    with pytest.raises(ValueError, match="layers"):
        handle.set_rng_state({"seed": 0, "calls": [1]})


def test_torchs_random_state_is_not_touched():
    net = network()
    converted(net, keep_frac=0.3, rows="random")
    before = torch.get_rng_state()
    gradients(net, batch())
    assert torch.equal(torch.get_rng_state(), before)


def total(net):
    return {name: p.grad for name, p in net.named_parameters()}


@pytest.mark.parametrize("at_once", [False, True])
def test_accumulation_is_the_sum_of_the_parts(at_once):
    """Also where two forward passes precede one backward pass."""
    net = quiet(network(p=0.1))
    handle = converted(net, **SETTINGS)
    state, parts = handle.rng_state(), [batch(seed=seed) for seed in range(2)]
    one, two = (gradients(net, part)[1] for part in parts)
    handle.set_rng_state(state)
    net.zero_grad()
    if at_once:
        sum(net(**part).loss for part in parts).backward()
    else:
        for part in parts:
            net(**part).loss.backward()
    assert error(total(net), {name: one[name] + two[name] for name in one}) < 1e-6


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing_around_the_layers(use_reentrant):
    """The repeated forward draws the masks of the first, also when two forwards precede the backward pass."""
    found = []
    for checkpointed in (False, True):
        net = quiet(network(p=0.1))
        converted(net, **SETTINGS)
        if checkpointed:
            net.activation_checkpointing_enable({"use_reentrant": use_reentrant})
        sum(net(**batch(seed=seed)).loss for seed in range(2)).backward()
        found.append(total(net))
    assert error(*found) < 1e-6


@pytest.mark.parametrize("kernels", ["torch", "auto"])
def test_autocast_multiplies_in_bfloat16_and_keeps_the_stream(kernels):
    data = batch(lengths=[17, 9, 17, 1, 4])
    want = gradients(network(), data)[1]
    nets = {"dense": network(), "late": network()}
    converted(nets["late"], store="8bit", kernels=kernels)
    errors, dtypes = {}, {}
    for name, net in nets.items():
        with torch.autocast("cpu", torch.bfloat16):
            out = net.base_model(data["input_ids"], data["attention_mask"]).last_hidden_state
            loss = net(**data).loss
            dtypes[name] = out.dtype
        loss.backward()
        errors[name] = error(total(net), want)
    assert dtypes["late"] == dtypes["dense"] == torch.float32
    assert errors["late"] < 2 * errors["dense"] + 0.02


def test_backward_inside_autocast_is_the_same():
    found = []
    for inside in (False, True):
        net = network()
        converted(net, store="8bit")
        with torch.autocast("cpu", torch.bfloat16):
            loss = net(**batch()).loss
            if inside:
                loss.backward()
        if not inside:
            loss.backward()
        found.append(total(net))
    assert error(*found) < 1e-2


def test_a_model_in_bfloat16():
    dense, net = network().bfloat16(), network().bfloat16()
    converted(net, store="8bit")
    want = gradients(network(), batch())[1]
    assert error(gradients(net, batch())[1], want) < 2 * error(gradients(dense, batch())[1], want) + 0.02
