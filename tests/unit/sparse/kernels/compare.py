"""What the tests of the kernels share: random inputs, and how near is near enough."""

import torch

FLOATS = (torch.float32, torch.bfloat16)
KINDS = (torch.int8, torch.uint8, torch.bfloat16, torch.float32)
SHAPES = ((1, 1), (3, 64), (5, 100), (40, 768), (2, 63))


def close(mine, theirs, dtype=torch.float32):
    """Equal up to the order of sums, and one rounding where numbers are bfloat16."""
    tolerance = 2e-2 if torch.bfloat16 in (dtype, mine.dtype) else 2e-5
    torch.testing.assert_close(mine.float(), theirs.float(), rtol=tolerance, atol=tolerance)


def same_codes(mine, theirs):
    """Codes may differ by one where a rounding fell on the other side; scales not at all."""
    (data, scales), (data_, scales_) = mine, theirs
    assert data.dtype == data_.dtype and scales.shape == scales_.shape
    if data.dtype in (torch.int8, torch.uint8):
        assert (data.int() - data_.int()).abs().max() <= 1
        assert (data != data_).float().mean() < 0.01
    else:
        close(data, data_, data.dtype)
    torch.testing.assert_close(scales, scales_.to(scales.dtype), rtol=1e-2, atol=1e-6)


def inputs(shape, dtype, count=2):
    generator = torch.Generator().manual_seed(sum(shape))
    return [(torch.randn(shape, generator=generator) * 2).to(dtype) for _ in range(count)]
