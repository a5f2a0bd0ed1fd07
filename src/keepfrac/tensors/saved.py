"""What autograd saves inside a network: which of it are the network's own tensors and no activations."""

import torch
from torch import Tensor, nn

# Through these, a tensor that autograd saves is still a parameter, cast or transposed.
_VIEWS = ("TBackward0", "TransposeBackward0", "ToCopyBackward0", "ViewBackward0", "PermuteBackward0")


class OwnTensors:
    """Parameters and buffers of a network, as they are now.

    Args:
        net: the network.
    """

    def __init__(self, net: nn.Module) -> None:
        self.storages = {tensor.untyped_storage().data_ptr() for tensor in [*net.parameters(), *net.buffers()]}
        self.frozen = _frozen_weights(net)

    def has(self, tensor: Tensor) -> bool:
        """Returns whether a tensor that a saved-tensor hook is given is one of them, a view or autocast's cast."""
        if tensor.untyped_storage().data_ptr() in self.storages:
            return True
        return _is_of_parameter(tensor) or _is_cast_of(tensor, self.frozen)


def _is_of_parameter(tensor: Tensor) -> bool:
    node = tensor.grad_fn
    while node is not None and node.name() in _VIEWS:
        node = node.next_functions[0][0]
        if node is not None and node.name() == "torch::autograd::AccumulateGrad":
            return True
    return False


def _frozen_weights(net: nn.Module) -> dict[torch.Size, list[Tensor]]:
    """The frozen matrices of `net` by their shape, in both orientations."""
    found: dict[torch.Size, list[Tensor]] = {}
    for parameter in net.parameters():
        if parameter.ndim == 2 and not parameter.requires_grad:
            for matrix in (parameter.detach(), parameter.detach().t()):
                found.setdefault(matrix.shape, []).append(matrix)
    return found


def _is_cast_of(tensor: Tensor, frozen: dict[torch.Size, list[Tensor]]) -> bool:
    """Whether it is what autocast made of a frozen weight: that has no graph which would say so."""
    if tensor.dtype not in (torch.bfloat16, torch.float16):
        return False
    return any(torch.equal(tensor, one.to(tensor.dtype)) for one in frozen.get(tensor.shape, ()))
