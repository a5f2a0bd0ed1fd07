"""The folders of Hugging Face's PEFT: a LoRA made elsewhere is understood whole, or refused by the name of its field.

| fields of `adapter_config.json`                                          | what becomes of them                     |
| ------------------------------------------------------------------------ | ---------------------------------------- |
| r, lora_alpha, use_rslora, rank_pattern, alpha_pattern                   | the rank and scale of each linear        |
| bias, modules_to_save                                                    | their tensors are brought into the model |
| target_modules, exclude_modules, layers_to_transform, layers_pattern     | the tensors themselves say where they go |
| init_lora_weights                                                        | read where the base model stays as it is |
| lora_dropout, what an initialisation was given, descriptions             | without effect on what the model computes|
| any other, known today or not, that is switched on                       | refused: it changes the function         |
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from keepfrac.adapters.function import unravel_positions
from keepfrac.adapters.layer import AdaptedLinear, Update
from keepfrac.adapters.surgery import adapted
from keepfrac.errors import UserError

PEFT_CONFIG, PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
HONOURED = {"r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "bias", "modules_to_save"}
HONOURED |= {"init_lora_weights", "peft_type"}
BY_TENSORS = {"target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "fan_in_fan_out"}
"""Where updates go, and how their linears lie in memory: the names and the shapes of the tensors say it too."""
NO_EFFECT = {"auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode", "peft_version"}
NO_EFFECT |= {"lora_dropout", "runtime_config", "megatron_core", "qalora_group_size"}
NO_EFFECT |= {"loftq_config", "eva_config", "corda_config", "lora_ga_config"}
"""Descriptions, what acts in training alone, and details of fields that are looked at themselves."""
BASE_STAYS = (True, False, "gaussian", "eva", "orthogonal", "mica")
"""Values of init_lora_weights that leave the base model's weights as they are."""


@dataclass(frozen=True)
class PeftFolder:
    """A LoRA as PEFT saves it.

    Attributes:
        factors: path -> A (r, inputs), B (outputs, r) and the scale of their product.
        others: further trained tensors (a head, biases) by parameter name.
        rank: r of the linears that no pattern names.
        copied: names of the modules that PEFT trains as copies of their own (modules_to_save).
    """

    factors: Mapping[str, tuple[Tensor, Tensor, float]]
    others: Mapping[str, Tensor]
    rank: int
    copied: tuple[str, ...] = ()


def read_peft(folder: Path) -> PeftFolder:
    """Reads a PEFT folder; the package is not needed.

    Raises:
        UserError: it is none, or holds what is no plain LoRA (DoRA, embeddings, pickled weights); fields are named.
    """
    try:
        config = dict(json.loads((Path(folder) / PEFT_CONFIG).read_text()))
        tensors = load_file(Path(folder) / PEFT_WEIGHTS)
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise UserError(
            f"method.adapter={folder}: not a PEFT folder with {PEFT_CONFIG} and {PEFT_WEIGHTS} ({error})"
        ) from error
    try:
        _check(config)
        pairs, others = _sorted(tensors)
        factors = {path: (a, b, _scale(config, path, len(a))) for path, (a, b) in pairs.items()}
    except UserError as error:
        raise UserError(f"method.adapter={folder}: {error}") from error
    copied = tuple(config.get("modules_to_save") or ())
    return PeftFolder(factors, others, rank=config.get("r", 8), copied=copied)


def _check(config: Mapping[str, Any]) -> None:
    """Raises a UserError that names each field by which the folder is more than a plain LoRA."""
    known = HONOURED | BY_TENSORS | NO_EFFECT
    wrong = {key: value for key, value in config.items() if key not in known and value}
    start = config.get("init_lora_weights", True)
    if config.get("peft_type") != "LORA":
        wrong = {"peft_type": config.get("peft_type")}
    elif start not in BASE_STAYS:
        raise UserError(
            f"init_lora_weights={start} changes the base model's own weights; in PEFT, convert it to a plain LoRA"
            " (save_pretrained with path_initial_model_for_weight_conversion)"
        )
    if wrong:
        raise UserError(
            "only a plain LoRA can be read, not one with "
            + ", ".join(f"{key}={json.dumps(value)}" for key, value in wrong.items())
        )


def _sorted(tensors: Mapping[str, Tensor]) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """The pairs (A, B) of linears by path, and other parameters by name."""
    halves: dict[str, dict[str, Tensor]] = {}
    others: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        path, _, rest = name.removeprefix(PREFIX).partition(".lora_")
        if not rest:
            others[path.replace(".base_layer.", ".")] = tensor  # the bias of a linear that has an update
        elif rest in ("A.weight", "B.weight") and tensor.ndim == 2:
            halves.setdefault(path, {})[rest[0]] = tensor
        else:
            raise UserError(f"{name} cannot be read; only linears' factors can")
    incomplete = [path for path, pair in halves.items() if len(pair) < 2 or len(pair["A"]) != pair["B"].shape[1]]
    if incomplete:
        raise UserError(f"{incomplete[0]} has no pair of factors A (r, inputs) and B (outputs, r)")
    return {path: (pair["A"], pair["B"]) for path, pair in halves.items()}, others


def _scale(config: Mapping[str, Any], path: str, rank: int) -> float:
    alpha = _of_pattern(config.get("alpha_pattern"), path, config.get("lora_alpha", 8))
    stated = _of_pattern(config.get("rank_pattern"), path, config.get("r", 8))
    if stated != rank:
        raise UserError(f"{path} has factors of rank {rank}, and r or rank_pattern say {stated}")
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def _of_pattern(patterns: Mapping[str, Any] | None, path: str, default: Any) -> Any:
    """The value of the first pattern, a regular expression, that a path or its end after a dot matches.

    Source: `get_pattern_key` of PEFT 0.21, peft/utils/other.py.
    """
    for pattern, value in (patterns or {}).items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", path):
                return value
        except re.error as error:
            raise UserError(f"{pattern!r} in a pattern field is no regular expression ({error})") from error
    return default


@torch.no_grad()
def start_from(net: nn.Module, peft: PeftFolder) -> None:
    """Brings a PEFT folder's factors, and what else it trained, into a model whose linears have their updates.

    An update that the folder does not have stays at its beginning, 0. One whose rank a pattern of the folder sets has
    that rank from then on.

    Raises:
        UserError: the folder has other linears than the model's updates, or other shapes.
    """
    modules = adapted(net)
    unknown = {path: None for path in peft.factors if path not in modules}
    if unknown or not peft.factors:
        raise UserError(
            f"method.adapter has updates of {_some(unknown) or 'nothing'}, which method.targets does not name: it"
            f" names {_some(modules)}"
        )
    for path, (a, b, scale) in peft.factors.items():
        update = _update_for(modules[path], path, peft.rank, a=a, b=b)
        update.v.copy_(a)
        update.u.copy_(b * (scale / update.scale))
    for name, tensor in peft.others.items():
        _parameter_for(net, name, tensor, peft.copied).copy_(tensor)


def _update_for(module: AdaptedLinear, path: str, usual: int, *, a: Tensor, b: Tensor) -> Update:
    """The one update of a linear, of the factors' rank where only a pattern makes the rank another one."""
    (role, *more), (rank, inputs), outputs = module.updates, a.shape, len(b)
    update: Any = module.updates[role]
    if more:
        raise UserError(
            f"method.adapter: {path} has one update of all its outputs, and method.targets gives it several; name it"
            f" by its path: method.targets=['.*{path.rpartition('.')[2]}']"
        )
    if (update.outputs, update.v.shape[1]) != (outputs, inputs) or (rank != update.rank and usual != update.rank):
        raise UserError(
            f"method.adapter: {path} has factors {tuple(b.shape)} and {tuple(a.shape)}; with method.rank="
            f"{update.rank} they must be {tuple(update.u.shape)} and {tuple(update.v.shape)}"
        )
    if rank != update.rank:
        start, positions = update.start, update.positions
        other = Update(outputs, inputs, rank, scale=update.scale, positions=positions, start=start)
        module.updates[role] = update = other.to(module.weight.device)
    return update


def _parameter_for(net: nn.Module, name: str, tensor: Tensor, copied: tuple[str, ...]) -> nn.Parameter:
    """The parameter that one of the folder's further tensors is the value of."""
    try:
        parameter = net.get_parameter(name)
    except AttributeError as error:
        raise UserError(f"method.adapter: {name} {tuple(tensor.shape)} does not fit the model") from error
    if parameter.shape != tensor.shape:
        shape = tuple(parameter.shape)
        raise UserError(f"method.adapter: {name} {tuple(tensor.shape)} does not fit the model, which has {shape}")
    names = [other for other, one in net.named_parameters(remove_duplicate=False) if one is parameter]
    if len(names) > 1 and name.rpartition(".")[0].endswith(copied):
        raise UserError(
            f"method.adapter: modules_to_save has a copy of {name}, which this model shares with"
            f" {names[1 - names.index(name)]}: the two cannot differ here"
        )
    return parameter


@torch.no_grad()
def write_peft(net: nn.Module, folder: Path, base: str) -> Path:
    """Writes a model's updates as a PEFT folder.

    S2 is exact there too: N positions are a product of rank N, of unit rows, so the factors' rank is r + N. Slices of
    a fused linear are stacked the same way.

    Args:
        net: the model.
        folder: is made.
        base: name or folder of the model that the updates belong to.

    Raises:
        UserError: the model has no updates (they were merged).
    """
    modules = adapted(net)
    if not modules:
        raise UserError("export=peft: this model has no updates of its own; train with method.merge=keep")
    tensors, ranks, alphas = {}, {}, {}
    for path, module in modules.items():
        a, b, scale = _factors(module)
        tensors[f"{PREFIX}{path}.lora_A.weight"], tensors[f"{PREFIX}{path}.lora_B.weight"] = a, b
        ranks[path], alphas[path] = len(a), scale * len(a)
    most = max(ranks, key=lambda path: ranks[path])
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "r": ranks[most],
        "lora_alpha": alphas[most],
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": all(module.transposed for module in modules.values()),
        "target_modules": list(modules),
        "rank_pattern": {path: rank for path, rank in ranks.items() if rank != ranks[most]},
        "alpha_pattern": {path: alpha for path, alpha in alphas.items() if alpha != alphas[most]},
        "inference_mode": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PEFT_CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    save_file(tensors, folder / PEFT_WEIGHTS)
    return folder


def _factors(module: AdaptedLinear) -> tuple[Tensor, Tensor, float]:
    """A (rank, inputs), B (outputs, rank) with s B A = the whole update, and s, on the CPU."""
    rows, columns = [], []
    scale = module.parts()[0].scale
    for part in module.parts():
        a: list[Tensor] = [part.v]
        b: list[Tensor] = [part.u]
        if part.values is not None and part.positions is not None:
            row, column = (found.long() for found in unravel_positions(part.positions, module.in_features))
            unit = torch.eye(module.in_features, dtype=part.v.dtype)[column.cpu()]
            a.append(unit.to(part.v.device))
            b.append(torch.zeros_like(part.u[:, :1]).expand(-1, len(row)).clone())
            b[-1][row, torch.arange(len(row))] = part.values
        whole = part.v.new_zeros(module.out_features, sum(x.shape[1] for x in b))
        whole[part.rows] = torch.cat(b, 1) * (part.scale / scale)
        rows.append(torch.cat(a))
        columns.append(whole)
    return torch.cat(rows).cpu().contiguous(), torch.cat(columns, 1).cpu().contiguous(), scale


def _some(paths: Mapping) -> str:
    shown = sorted(paths)
    return ", ".join(shown[:2]) + (f" and {len(shown) - 2} more" if len(shown) > 2 else "")
