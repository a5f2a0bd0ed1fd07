"""How a layer holds the matrices of its linears: transposed as by Conv1D, several in one (query, key and value)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

KINDS = ("weight", "bias")


def is_linear(module: nn.Module) -> bool:
    """Returns whether it multiplies by a matrix `weight`, as nn.Linear and Conv1D do; an embedding looks up."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 2 and not isinstance(module, nn.Embedding)


def is_transposed(linear: nn.Module) -> bool:
    """Returns whether a linear holds its weight as (inputs, outputs): Conv1D, and what took one's place."""
    return bool(getattr(linear, "transposed", not isinstance(linear, nn.Linear)))


@dataclass(frozen=True)
class LinearLayout:
    """The linears of one layer.

    Args:
        paths: role -> path, without those that are not there. Roles of the same path are the equal parts of one packed
            linear's outputs, in this order.
        transposed: whether weights are held as (inputs, outputs).
    """

    paths: Mapping[str, str]
    transposed: bool

    def packed_with(self, role: str) -> tuple[str, ...]:
        """Returns the roles that share the linear of `role`, itself among them."""
        return tuple(other for other, path in self.paths.items() if path == self.paths[role])

    def oriented(self, weight: Tensor) -> Tensor:
        """Returns a weight as (outputs, inputs), or one of these as it is held."""
        return weight.t() if self.transposed else weight

    def part(self, role: str, outputs: Tensor) -> Tensor:
        """Returns the part of a linear's outputs, its first dimension, that belongs to a role; a view."""
        roles = self.packed_with(role)
        return outputs.chunk(len(roles))[roles.index(role)]

    def split(self, tensors: dict[str, Tensor]) -> dict[str, str]:
        """Turns a layer's tensors, in place, into those of plain linears, one for each role.

        Returns:
            Their paths by role. The parts of a packed linear stand at `<path>/<role>` until `join`. Tensors that are
            absent are left out.
        """
        self._turn(tensors)
        return {role: self._split(tensors, role) for role in self.paths}

    def _split(self, tensors: dict[str, Tensor], role: str) -> str:
        path, roles = self.paths[role], self.packed_with(role)
        if len(roles) == 1:
            return path
        for kind in KINDS:
            if (whole := tensors.pop(f"{path}.{kind}", None)) is not None:
                for other, tensor in zip(roles, whole.chunk(len(roles)), strict=True):
                    tensors[f"{path}/{other}.{kind}"] = tensor
        return f"{path}/{role}"

    def join(self, tensors: dict[str, Tensor]) -> None:
        """Takes back, in place, what `split` did."""
        for role, path in self.paths.items():
            roles = self.packed_with(role)
            for kind in KINDS if len(roles) > 1 and role == roles[0] else ():
                names = [f"{path}/{other}.{kind}" for other in roles]
                if all(name in tensors for name in names):
                    tensors[f"{path}.{kind}"] = torch.cat([tensors.pop(name) for name in names])
        self._turn(tensors)

    def _turn(self, tensors: dict[str, Tensor]) -> None:
        for path in dict.fromkeys(self.paths.values()):
            if self.transposed and (weight := tensors.get(f"{path}.weight")) is not None:
                tensors[f"{path}.weight"] = weight.t().contiguous()
