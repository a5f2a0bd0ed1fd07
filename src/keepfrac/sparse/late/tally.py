"""What a block counts about itself, and what it refuses."""

import torch
from torch import Tensor

from keepfrac.sparse.late.settings import Plan


def count_saved(
    plan: Plan, x: Tensor, compute: torch.dtype, kept: tuple[Tensor, ...], inner: int | None, reads: bool = True
) -> None:
    """Notes what this call stores, and what PyTorch stores for the same operations.

    Dense, per token: the block's input (where `reads`: its first linears learn) and `inner` numbers in the compute
    dtype (query, key, value and context, or both sides of the activation function), the LayerNorm's input in x's
    dtype, one byte per number of the output's dropout mask, and the logsumexp of a fused attention: 16.5 times batch *
    length * width floats for a BERT layer. `inner` None: a LayerNorm alone.
    """
    rows, width = x.numel() // x.shape[-1], x.shape[-1]
    per_row = width * x.element_size()
    if inner is not None:
        mask = width if plan.p > 0 else 0
        per_row += (width * reads + inner) * compute.itemsize + mask + 4 * plan.heads
    plan.tally.saved_bytes = sum(tensor.nbytes for tensor in kept)
    plan.tally.dense_bytes = rows * per_row


def refuse_double_backward() -> None:
    """The gradient is made of rounded and sampled numbers: its own derivative would mean nothing.

    Raises:
        RuntimeError: the backward pass was asked to be differentiable.
    """
    if torch.is_grad_enabled():
        raise RuntimeError(
            "method late has no second derivative: call backward or autograd.grad without create_graph=True"
        )
