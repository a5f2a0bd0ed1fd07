"""The feed-forward's activation function: GELU by its kernels, any other by PyTorch."""

import torch
from torch import Tensor
from transformers.activations import ACT2FN

from src.sparse.kernels import plain


class Gelu:
    """The exact GELU: stored, differentiated and rebuilt by one kernel each.

    Args:
        kernels: compiled or plain.
    """

    def __init__(self, kernels) -> None:
        self.forward, self.backward, self.rows = kernels.gelu_, kernels.gelu_grad_, kernels.gelu_rows

    @staticmethod
    def room(rows: int, width: int, kind: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        """Returns where `rows` x `width` inputs of the function are stored: data, scales."""
        return plain.empty(rows, width, kind, device)


class Other:
    """An elementwise function named as in transformers' ACT2FN.

    Its input is kept in bfloat16 at least, whatever is asked: with 8-bit steps a kink (ReLU's) would be missed by many
    numbers near it, and functions that do not vanish below -4 would be cut there.

    Args:
        name: for example "relu" or "gelu_new".
    """

    def __init__(self, name: str) -> None:
        self.function = ACT2FN[name]

    @staticmethod
    def room(rows: int, width: int, kind: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        """As `Gelu.room`."""
        return plain.empty(rows, width, torch.bfloat16 if kind == torch.uint8 else kind, device)

    def forward(self, h: Tensor, data: Tensor, scales: Tensor) -> Tensor:
        """Stores h into data; returns the function of h."""
        data.copy_(h)
        return self.function(h)

    def backward(self, grad: Tensor, data: Tensor, scales: Tensor, index: Tensor) -> Tensor:
        """Returns grad times the function's slope at the stored rows `index`."""
        with torch.enable_grad():
            h = data.index_select(0, index).to(grad.dtype).requires_grad_()
            (slope,) = torch.autograd.grad(self.function(h), h, grad)
        return slope

    def rows(
        self, data: Tensor, scales: Tensor, index: Tensor, weight: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        """Returns the function of the stored rows `index`, times weight."""
        x = self.function(data.index_select(0, index).to(dtype))
        return x if weight is None else x * weight.to(dtype).unsqueeze(1)


def activation_for(name: str, kernels) -> Gelu | Other:
    """Returns what stores, applies and differentiates the function `name`."""
    return Gelu(kernels) if name == "gelu" else Other(name)
