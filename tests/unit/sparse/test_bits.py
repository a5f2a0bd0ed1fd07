import pytest
import torch

from keepfrac.tensors import bits as module
from keepfrac.tensors.bits import exact_top, flat_positions, magnitude_keys, pack_bits, unpack_bits


@pytest.fixture(autouse=True, params=["numpy", "torch"])
def operations(request, monkeypatch):
    """Each test with NumPy's operations and with PyTorch's, which a GPU takes."""
    if request.param == "torch":
        monkeypatch.setattr(module, "_in_numpy", lambda x: False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_keys_order_as_magnitudes_and_keep_ties(dtype, device):
    x = torch.randn(500, device=device).mul(3).round().to(dtype)  # many ties
    x = torch.cat([x, torch.tensor([0.0, -0.0, 1e-5, torch.inf], device=device).to(dtype)])
    keys, sizes = magnitude_keys(x).long(), x.abs().double()
    assert torch.equal(keys[:, None] > keys, sizes[:, None] > sizes)
    assert torch.equal(keys == 0, x == 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_exact_top_keeps_the_exact_count_of_the_largest(dtype, device):
    x = torch.randn(6, 401, device=device).mul(4).round().add(0.5).to(dtype)  # ties everywhere, no zeros
    counts = [1, 3, 100, 200, 400, 401]
    mask = exact_top(magnitude_keys(x), counts)
    assert mask.sum(1).tolist() == counts
    for row, kept in zip(x.abs().float(), mask, strict=True):
        if not kept.all():
            assert row[kept].min() >= row[~kept].max()


def test_ties_are_filled_from_the_first(device):
    x = torch.tensor([[2.0, 1.0, 1.0, 1.0, 3.0]], device=device)
    assert exact_top(magnitude_keys(x), [3]).tolist() == [[True, True, False, False, True]]


def test_zeros_are_never_kept(device):
    x = torch.randn(4, 1000, device=device).sub(1).relu()  # 84 % zeros
    mask = exact_top(magnitude_keys(x), [300] * 4)
    assert torch.equal(mask, x > 0)
    assert not exact_top(magnitude_keys(torch.zeros(2, 8, device=device)), [3, 3]).any()


def test_excluded_keys_are_never_kept(device):
    keys = torch.tensor([[5, -1, 4, -1], [-1, -1, -1, -1]], dtype=torch.int32, device=device)
    assert exact_top(keys, [3, 0]).tolist() == [[True, False, True, False], [False] * 4]


@pytest.mark.parametrize("count", [1, 7, 8, 9, 64, 1001])
def test_bits_come_back(count, device):
    mask = torch.rand(count, device=device) < 0.4
    bits = pack_bits(mask)
    assert bits.dtype == torch.uint8
    assert len(bits) == -(-count // 8)
    assert torch.equal(unpack_bits(bits, count), mask)


def test_positions_ascend(device):
    mask = torch.rand(3, 50, device=device) < 0.5
    assert torch.equal(flat_positions(mask), mask.reshape(-1).nonzero().reshape(-1))
