"""The oracle of sparse backward: PyTorch's own autograd, with the kept part put in place of what it saves itself.

A hook on every tensor that autograd saves compares it with the dense activation; where it is that activation (or its
transpose, or a reshape), the unpacked selection is saved instead. The backward pass is then PyTorch's, not ours.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from keepfrac.sparse.context import Draw, Padding
from keepfrac.sparse.selection.keeping import keep
from keepfrac.sparse.selection.packing import unpack
from keepfrac.sparse.selection.selectors import Selector


@contextmanager
def substituted(*pairs: tuple[Tensor, Tensor]) -> Iterator[None]:
    """While open, autograd saves `replacement` wherever it would save `dense`, for each pair; all must occur."""
    used = set()

    def pack(saved: Tensor) -> Tensor:
        for number, (dense, replacement) in enumerate(pairs):
            if saved.numel() == dense.numel() and saved.dtype == dense.dtype:
                for turned, other in ((dense, replacement), (dense.mT, replacement.mT)):
                    same = saved.shape[-1] == turned.shape[-1] and torch.equal(
                        saved.detach().reshape(turned.shape), turned
                    )
                    if same:
                        used.add(number)
                        return other.reshape(saved.shape)
        return saved.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield
    assert used == set(range(len(pairs))), f"only {used} of {len(pairs)} were saved"


def kept_part(x: Tensor, selector: Selector, padding: Padding | None = None, draw: Draw | None = None) -> Tensor:
    """X with zeros where the selector keeps nothing."""
    kept = keep(x.detach(), selector, padding, draw or Draw(0, 0, 0))
    return unpack(kept.layout, kept.tensors)
