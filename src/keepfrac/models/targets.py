"""Which linears of a model a list of roles or patterns means, slices of fused ones included."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from keepfrac.adapters.surgery import Target
from keepfrac.errors import UserError
from keepfrac.models.anatomy import Layer, anatomy
from keepfrac.prune.attach import rank_of
from keepfrac.prune.structure import ROLES
from keepfrac.tensors.layouts import is_transposed

KNOWN = (*ROLES, "ffn_gate")


def targets_of(net: nn.Module, wanted: Sequence[str]) -> list[Target]:
    """Returns what `wanted` names, in the order of the network's layers.

    Args:
        net: the model.
        wanted: roles of the anatomy (query, ffn_in ...), or regular expressions of whole module paths. A linear that
            an earlier run left as two factors means both factors.

    Raises:
        UserError: an entry names nothing in this model, or two entries name the same outputs of a linear.
    """
    roles = [entry for entry in wanted if entry in KNOWN]
    found: list[Target] = []
    for layer in anatomy(net).layers if roles else ():
        for role in roles:
            path = getattr(layer, role, None)
            found += [] if path is None else _of_role(net, layer, role, path)
    for entry in wanted:
        if entry not in KNOWN:
            found += _matching(net, entry)
    missing = [role for role in roles if not any(target.role.startswith(role) for target in found)]
    if missing:
        raise UserError(f"method.targets={missing[0]}: this {type(net).__name__} has no such part")
    found = list(dict.fromkeys(found))
    _refuse_overlaps(net, found)
    return found


def _refuse_overlaps(net: nn.Module, targets: Sequence[Target]) -> None:
    by_path: dict[str, list[Target]] = {}
    for target in targets:
        by_path.setdefault(target.path, []).append(target)
    for path, some in by_path.items():
        if len(some) < 2:
            continue
        size = _outputs(net.get_submodule(path))
        ordered = sorted(some, key=lambda target: target.start)
        for one, other in pairwise(ordered):
            if other.start < one.start + (one.size or size):
                raise UserError(
                    f"method.targets: {one.role} and {other.role} both name outputs of {path}, which would have two"
                    " updates; name them by roles or by a pattern, not by both"
                )


def linears_of(net: nn.Module, pooler: bool) -> list[str]:
    """Returns the paths of the layers' linears, each once (factors by themselves), and the pooler's if it is asked for.

    Raises:
        UserError: a pooler is asked for, and the model has none.
    """
    parts = anatomy(net)
    paths = [
        target.path
        for layer in parts.layers
        for role in KNOWN
        if getattr(layer, role, None) is not None
        for target in _of_role(net, layer, role, getattr(layer, role))
    ]
    if pooler and parts.pooler is None:
        raise UserError(f"method.pooler=true: this {type(net).__name__} has no pooler")
    return list(dict.fromkeys([*paths, *([_linear_of(net, str(parts.pooler))] if pooler else [])]))


def _linear_of(net: nn.Module, pooler: str) -> str:
    return pooler if isinstance(net.get_submodule(pooler), nn.Linear) else f"{pooler}.dense"


def _of_role(net: nn.Module, layer: Layer, role: str, path: str) -> list[Target]:
    module = net.get_submodule(path)
    if rank_of(module) is not None:
        return [Target(f"{path}.{factor}", f"{role}_{factor}") for factor in ("p", "q")]
    sharing = layer.layout.packed_with(role)
    if len(sharing) == 1:
        return [Target(path, role)]
    size = _outputs(module) // len(sharing)
    return [Target(path, role, sharing.index(role) * size, size)]


def _outputs(module: nn.Module) -> int:
    return module.get_parameter("weight").shape[1 if is_transposed(module) else 0]


def _matching(net: nn.Module, pattern: str) -> list[Target]:
    try:
        wanted = re.compile(pattern)
    except re.error as error:
        raise UserError(f"method.targets={pattern}: no regular expression ({error})") from error
    paths = [path for path, _ in net.named_modules() if path and wanted.fullmatch(path)]
    if not paths:
        raise UserError(
            f"method.targets={pattern}: matches nothing; a role ({', '.join(ROLES)}) or a regular expression of a whole"
            f" module path is needed, such as {_example(net)}"
        )
    return [Target(path, path.rpartition(".")[2]) for path in paths]


def _example(net: nn.Module) -> str:
    return next((path for path, module in net.named_modules() if isinstance(module, nn.Linear)), "-")
