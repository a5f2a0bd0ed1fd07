"""A budget of bytes: the greedy choice, and what it comes to on a network."""

import pytest
import torch

from keepfrac.errors import UserError
from keepfrac.measurement.costs import saved_storages
from keepfrac.sparse.act8bit.allocation import OPTIONS, StorageOption, allocate_formats, cheapest
from keepfrac.sparse.act8bit.settings import STORES
from tests.unit.sparse.act8bit.nets import batch, converted, error, gradients, network, stack


def test_the_least_error_per_byte_goes_first():
    near, far, wide = (
        StorageOption({"a": "1"}, 0.1, 10),
        StorageOption({"a": "2"}, 0.5, 20),
        StorageOption({"b": "1"}, 0.3, 15),
    )
    options = {(0, "x"): [near, far], (1, "y"): [wide]}
    assert [one.freed for one in cheapest(options, 0).values()] == [0, 0]
    assert cheapest(options, 10)[0, "x"] is near and cheapest(options, 10)[1, "y"].freed == 0
    assert cheapest(options, 25) == {(0, "x"): near, (1, "y"): wide}
    assert cheapest(options, 35) == {(0, "x"): far, (1, "y"): wide}
    assert cheapest(options, 36) is None


def spent(budget, **settings):
    net, data = network(p=0.1), batch(rows=6, length=16, lengths=[16, 9, 16, 3, 16, 12])
    handle = converted(net, 0.3, **settings)
    allocate_formats(net, handle, lambda: net(**data).loss, budget)
    return net, handle


@pytest.mark.parametrize("budget", [0.9, 0.35, 0.2])
def test_it_is_kept_and_less_is_worse(budget):
    net, handle = spent(budget)
    x = torch.randn(6, 16, 96)
    dense = network(p=0.1)
    with saved_storages(net) as storages:
        stack(net, x)
    rows = handle.report()
    kept = sum(row["bytes_kept"] for row in rows)
    assert kept <= budget * sum(row["bytes_dense"] for row in rows)
    assert kept == pytest.approx(
        sum(storages.values()) - (x.nbytes if handle.storage()[0].normalized == "exact" else 0), rel=0.02
    )
    assert len(dense.state_dict()) == len(net.state_dict())


def test_more_bytes_give_a_smaller_error():
    errors, data = [], batch()
    want = gradients(network(), data)[1]
    for budget in (0.25, 0.5, 0.9):
        net = network()
        handle = converted(net)
        allocate_formats(net, handle, lambda net=net: net(**data).loss, budget)
        errors.append(error(gradients(net, data)[1], want))
    assert errors[0] > errors[1] > errors[2]


def test_nothing_else_changes():
    net, handle = spent(0.4)
    assert handle.rng_state()["calls"] == [0, 0] and handle.kept()["achieved"] is None
    assert all(p.grad is None for p in net.parameters())
    assert all(layer.late.settings.keep_frac == 0.3 for layer in handle.layers.values())
    assert set(handle.storage()) != {STORES["exact"]}


def test_too_little_is_refused_with_the_least():
    with pytest.raises(UserError, match=r"budget=0\.05.*0\.1[0-9]* "):
        spent(0.05)


def test_the_options_are_all_but_exact_storage():
    assert [len(found) for found in OPTIONS.values()] == [2, 5, 2]
