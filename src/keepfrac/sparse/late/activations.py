"""The feed-forward's activation function: GELU by its kernels, any other by PyTorch."""

import torch
from torch import Tensor, nn
from transformers.activations import ACT2CLS, GELUActivation

from keepfrac.sparse.kernels import plain

# classes, or classes with arguments
_STOCK = frozenset(one[0] if isinstance(one, tuple) else one for one in ACT2CLS.values())


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
    """Another elementwise function.

    Its input is kept in bfloat16 at least, whatever is asked: with 8-bit steps a kink (ReLU's) would be missed by many
    numbers near it, and functions that do not vanish below -4 would be cut there.

    Args:
        function: for example a ReLU.
    """

    def __init__(self, function: nn.Module) -> None:
        self.function = function

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

    def rows(self, data: Tensor, scales: Tensor, index: Tensor, weight: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Returns the function of the stored rows `index`, times weight."""
        x = self.function(data.index_select(0, index).to(dtype))
        return x if weight is None else x * weight.to(dtype).unsqueeze(1)


def is_known(function: nn.Module) -> bool:
    """Whether it is one of transformers' activation functions, without parameters."""
    return type(function) in _STOCK and not list(function.parameters())


def activation_for(function: nn.Module | None, kernels) -> Gelu | Other:
    """Returns what stores, applies and differentiates an activation function."""
    assert function is not None
    return Gelu(kernels) if type(function) is GELUActivation else Other(function)
