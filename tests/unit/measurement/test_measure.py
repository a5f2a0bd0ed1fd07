"""The ruler against what can be counted by hand."""

import pytest
import torch
from torch import nn

from keepfrac.measurement.costs import bytes_on_disk, macs, nonzeros, parameters, saved_bytes, step_seconds
from tests.tiny import tiny


def test_a_storage_that_two_operations_save_counts_once():
    net = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
    x = torch.randn(4, 8)  # both linears save x; the sum saves nothing
    assert saved_bytes(net, lambda: (net[0](x) + net[1](x)).sum()) == x.nbytes


def test_parameters_and_their_bf16_casts_do_not_count():
    net = nn.Linear(16, 8)
    x = torch.randn(4, 16)

    def step() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return net(x).sum()

    assert saved_bytes(net, step) == 4 * 16 * 2  # the bf16 copy of x, and no copy of the weight


def test_saved_bytes_leaves_no_gradient_behind():
    net = nn.Linear(4, 4)
    saved_bytes(net, lambda: net(torch.randn(2, 4)).sum())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_steps_are_interleaved_after_a_warm_up():
    order = []

    def step(name: str):
        def run() -> torch.Tensor:
            order.append(name)
            return torch.zeros((), requires_grad=True) + 0

        return run

    seconds = step_seconds({"a": step("a"), "b": step("b")}, 2, "cpu")
    assert order == ["a", "b"] * 3 and set(seconds) == {"a", "b"}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_macs_of_a_bert_match_the_formula_with_attention(attention):
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_labels": 2}
    net = tiny(layers=2, attention=attention, **sizes)
    length, d, f = 32, 64, 128
    layer = length * (4 * d * d + 2 * d * f) + 2 * length * length * d
    assert macs(net, length) == 2 * layer + d * d + d * 2


def test_counts():
    net = nn.Linear(3, 2)
    nn.init.zeros_(net.bias)
    assert parameters(net) == 8 and nonzeros(net) == 6


def test_masks_are_no_part_of_the_models_size(tmp_path):
    for name, size in (("model.safetensors", 40), ("masks.safetensors", 10), ("old.bin", 2), ("config.json", 1)):
        (tmp_path / name).write_bytes(bytes(size))
    assert bytes_on_disk(tmp_path) == 42
