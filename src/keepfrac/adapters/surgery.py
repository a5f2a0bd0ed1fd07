"""Putting updates onto a model's linears, taking them off, merging them without losing zeros."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from keepfrac.adapters.layer import AdaptedLinear, Update
from keepfrac.errors import UserError
from keepfrac.tensors.layouts import is_linear, is_transposed
from keepfrac.tensors.surgery import find, replace

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Target:
    """Where an update goes.

    Attributes:
        path: of the linear.
        role: the update's name inside it, such as "query".
        start, size: of the outputs that it changes; size None: all.
    """

    path: str
    role: str
    start: int = 0
    size: int | None = None


def adapted(net: nn.Module) -> dict[str, AdaptedLinear]:
    """Returns the adapted linears of a model by their path."""
    return {path: module for path, module in net.named_modules() if isinstance(module, AdaptedLinear)}


def check_target(net: nn.Module, path: str) -> nn.Module:
    """Returns the linear at a path, if it can be adapted.

    Raises:
        UserError: it is no linear, or its weight is quantised, or shared with another part of the model.
    """
    module = find(net, path)
    if isinstance(module, AdaptedLinear):
        raise UserError(f"{path} has an update already: go on with it, or merge it first (epochs=0)")
    if not is_linear(module):
        raise UserError(f"{path} is a {type(module).__name__}: only a linear can have an update")
    weight = module.get_parameter("weight")
    if weight.dtype not in FLOATS:
        raise UserError(f"{path} is quantised ({weight.dtype}): an update needs a weight in floating point")
    names = [name for name, other in net.named_parameters(remove_duplicate=False) if other is weight]
    if len(names) > 1:
        raise UserError(f"{path} shares its weight with {names[1 - names.index(f'{path}.weight')]}: it is tied")
    return module


def sizes_of(module: nn.Module, target: Target) -> tuple[int, int]:
    """Returns (outputs, inputs) of a target's part of a linear."""
    weight = module.get_parameter("weight")
    outputs, inputs = weight.t().shape if is_transposed(module) else weight.shape
    return (outputs if target.size is None else target.size), inputs


def part_of_weight(module: nn.Module, target: Target) -> Tensor:
    """Returns the (outputs, inputs) part of a linear's weight that a target means, without gradient; a view."""
    weight = module.get_parameter("weight").detach()
    weight = weight.t() if is_transposed(module) else weight
    return weight[target.start : target.start + (target.size or len(weight))]


def attach(
    net: nn.Module,
    targets: Sequence[Target],
    rank: int,
    scale: float,
    dropout: float = 0.0,
    positions: Mapping[Target, Tensor] | None = None,
) -> None:
    """Gives the linears of a model their updates, in place.

    Args:
        net: the model.
        targets: at least one.
        rank: of every update, >= 1.
        scale: s = alpha / r.
        dropout: of the updates' input.
        positions: S2's, by target; None: no S2.

    Raises:
        UserError: there is no target, or one cannot be adapted (`check_target`), or the rank does not fit.
    """
    if not targets:
        raise UserError(f"no part of {type(net).__name__} is named: nothing would be adapted")
    # V comes from the run's seed alone: the same in every process, whatever each has drawn before
    generator = torch.Generator().manual_seed(torch.initial_seed())
    for path in dict.fromkeys(target.path for target in targets):
        base, updates = check_target(net, path), {}
        for target in targets:
            if target.path == path:
                outputs, inputs = sizes_of(base, target)
                chosen = None if positions is None else positions[target]
                try:
                    update = Update(outputs, inputs, rank=rank, scale=scale, positions=chosen, start=target.start)
                except UserError as error:
                    raise UserError(f"{path}: {error}") from error
                update.draw(generator)
                updates[target.role] = update
        replace(net, path, AdaptedLinear(base, updates, dropout))


def detach(net: nn.Module) -> dict[str, dict[str, Update]]:
    """Takes the updates off a model, in place; returns them by path and role."""
    taken = {}
    for path, module in adapted(net).items():
        taken[path] = {role: module.updates[role] for role in module.updates}
        (base,) = module._base
        base._parameters.update(weight=module.weight, bias=module.bias)
        base.train(module.training)
        replace(net, path, base)
    return taken  # type: ignore[return-value]


def reattach(net: nn.Module, updates: Mapping[str, Mapping[str, Update]], dropout: float) -> None:
    """Puts updates that `detach` took off onto a model of the same paths, in place."""
    for path, by_role in updates.items():
        replace(net, path, AdaptedLinear(find(net, path), by_role, dropout))


@torch.no_grad()
def merge(net: nn.Module, masks: Mapping[str, Tensor], keep_zeros: bool) -> dict[str, Tensor]:
    """Adds the updates to the weights, in place: W' = S1 o (W + delta), or W + delta.

    Args:
        net: the model; its adapted linears become plain ones.
        masks: S1 by parameter name, where there is one.
        keep_zeros: whether a mask's zeros hold; false: the merged outputs become dense.

    Returns:
        The masks that hold of the merged model.
    """
    left = dict(masks)
    for path, module in adapted(net).items():
        name, total = f"{path}.weight", module.weight.double() + module.delta().double()
        if keep_zeros or module.constrained:
            mask = left.get(name, module.mask)
            total = total if mask is None else total * mask
        elif name in left:
            left[name] = _without(left[name], module)
        module.weight.copy_(total)
    detach(net)
    return {name: mask for name, mask in left.items() if not mask.all()}


def _without(mask: Tensor, module: AdaptedLinear) -> Tensor:
    """A mask that keeps everything in the outputs that have an update."""
    mask = module.oriented(mask).clone()
    for part in module.parts():
        mask[part.rows] = True
    return module.oriented(mask).contiguous()


def trainable(net: nn.Module) -> int:
    """Returns how many parameters of a model are trained, tied ones once."""
    return sum(parameter.numel() for parameter in net.parameters() if parameter.requires_grad)


def freeze_but(net: nn.Module, trained: Iterable[str]) -> None:
    """Freezes all but the updates and the modules at `trained`; a weight that these share with the rest is frozen."""
    names: dict[int, int] = {}
    for _, parameter in net.named_parameters(remove_duplicate=False):
        names[id(parameter)] = names.get(id(parameter), 0) + 1
    net.requires_grad_(False)
    for module in adapted(net).values():
        module.updates.requires_grad_(True)
    for parameter in (p for path in trained for p in find(net, path).parameters()):
        parameter.requires_grad_(names[id(parameter)] == 1)
