"""A whole layer of `late` with the Triton kernels against the plain functions. test_triton.py runs this file too."""

import os

import pytest
import torch

from tests.unit.sparse.act8bit.nets import batch, converted, error, gradients, network

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"


@pytest.mark.parametrize(
    ("store", "dtype", "limit"),
    [("exact", torch.float32, 1e-5), ("8bit", torch.float32, 2e-3), ("8bit", torch.bfloat16, 2e-2)],
)
@pytest.mark.parametrize("keep_frac", [1.0, 0.5])
def test_a_layer_trains_as_with_the_plain_functions(store, dtype, limit, keep_frac):
    """One whole layer, padding and dropout included; the two round 8-bit codes alike but for single ones."""
    data = {name: one.to(DEVICE) for name, one in batch(rows=3, length=7, lengths=[7, 3, 0]).items()}
    found = {}
    for choice in ("triton", "torch"):
        net = network(p=0.1, width=40, heads=2, inner=70, layers=1).to(DEVICE)
        handle = converted(net, keep_frac, store=store, skip_zero_rows=True, context="recompute", kernels=choice)
        assert handle.runs_on == choice and {row["kernels"] for row in handle.report()} == {choice}
        with torch.autocast(DEVICE, torch.bfloat16, enabled=dtype == torch.bfloat16):
            found[choice] = gradients(net, data)
    assert found["triton"][0] == pytest.approx(found["torch"][0], rel=1e-5 if dtype == torch.float32 else 1e-2)
    assert error(found["triton"][1], found["torch"][1]) < limit
