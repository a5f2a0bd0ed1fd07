"""Exact top-k over many numbers, and masks of one bit per number.

Selecting single numbers costs more bookkeeping than selecting rows, so these four functions decide what it costs at
all. On a CPU they use NumPy on the same memory, which is 5 to 50 times faster than the same step in PyTorch 2.13
(measured for 32 x 393,216 float32: `kthvalue` 196 ms, `np.partition` on the bit patterns 8 ms; `nonzero` 44 ms,
`np.flatnonzero` 5 ms). On a GPU they are the plain PyTorch operations.

Magnitudes are compared by their bit pattern: for IEEE numbers without sign, a larger number has a larger pattern
read as an integer. This is exact, and makes equal magnitudes equal integers, so that ties can be filled to the count.
"""

import numpy as np
import torch
from torch import Tensor

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _in_numpy(x: Tensor) -> bool:
    """Whether NumPy can work on the memory of `x`."""
    return x.device.type == "cpu"


def magnitude_keys(x: Tensor) -> Tensor:
    """Returns integers ordered as |x|, of the same shape and item size; 0 where x is 0. Fresh memory."""
    return x.abs().view(_INTEGERS[x.element_size()])


def flat_positions(mask: Tensor) -> Tensor:
    """Returns the int64 positions of the true elements of `mask` read as one row, ascending."""
    if _in_numpy(mask):
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.reshape(-1).nonzero().reshape(-1)


def kth_largest(keys: Tensor, counts: list[int]) -> Tensor:
    """Returns (rows, 1): for each row of `keys` (rows, width), its counts[row]-th largest key (counts from 1)."""
    rows, width = keys.shape
    if _in_numpy(keys):
        table = keys.numpy()
        kth = [np.partition(table[r], width - counts[r])[width - counts[r]] for r in range(rows)]
        return torch.from_numpy(np.asarray(kth)).reshape(rows, 1)
    ranked = keys.topk(max(counts), dim=1).values
    return ranked.gather(1, torch.tensor(counts, device=keys.device).reshape(rows, 1) - 1)


def exact_top(keys: Tensor, counts: list[int]) -> Tensor:
    """Returns a mask of the counts[row] largest keys of each row, exactly as many, but never a key that is <= 0.

    Where keys tie at the boundary, the first ones fill the count. Keys of 0 are zeros of the activation: storing them
    would buy nothing, so a row with fewer non-zero keys than its count keeps only those.

    Args:
        keys: integers (rows, width); -1 marks what must not be chosen.
        counts: how many to keep, one per row, at most the width.
    """
    wanted = [max(count, 1) for count in counts]
    boundary = kth_largest(keys, wanted).clamp_(min=1)
    mask = keys >= boundary
    excess = _row_counts(mask) - torch.tensor(counts, device=keys.device)
    if bool((excess > 0).any()):
        _drop_last_ties(mask, keys, boundary=boundary, excess=excess)
    return mask


def _row_counts(mask: Tensor) -> Tensor:
    return torch.from_numpy(np.count_nonzero(mask.numpy(), axis=1)) if _in_numpy(mask) else mask.sum(1)


def _drop_last_ties(mask: Tensor, keys: Tensor, boundary: Tensor, excess: Tensor) -> None:
    """Clears the last `excess[row]` of the keys that equal the row's boundary, in place."""
    width = keys.shape[1]
    ties = flat_positions(keys == boundary)
    row = ties // width
    ends = torch.searchsorted(row, torch.arange(keys.shape[0], device=keys.device), right=True)
    from_last = ends[row] - 1 - torch.arange(len(ties), device=keys.device)
    mask.view(-1).index_fill_(0, ties[from_last < excess[row]], False)


def pack_bits(mask: Tensor) -> Tensor:
    """Returns `mask` as uint8 with one bit per element, lowest bit first, padded with zeros to whole bytes."""
    flat = mask.reshape(-1)
    if _in_numpy(flat):
        return torch.from_numpy(np.packbits(flat.numpy(), bitorder="little"))
    padded = torch.nn.functional.pad(flat, (0, -flat.numel() % 8)).view(-1, 8)
    return (padded << torch.arange(8, device=flat.device)).sum(1).to(torch.uint8)


def unpack_bits(bits: Tensor, count: int) -> Tensor:
    """Returns the first `count` elements of a mask packed by `pack_bits`, as one row of booleans."""
    if _in_numpy(bits):
        return torch.from_numpy(np.unpackbits(bits.numpy(), count=count, bitorder="little")).view(torch.bool)
    shifts = torch.arange(8, device=bits.device, dtype=torch.uint8)
    return (bits.reshape(-1, 1) >> shifts & 1).bool().reshape(-1)[:count]
