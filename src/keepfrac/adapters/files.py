"""Updates in files: a model saved with them, and the folders of Hugging Face's PEFT."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from keepfrac.adapters.function import unravel_positions
from keepfrac.adapters.layer import AdaptedLinear, Update
from keepfrac.adapters.surgery import adapted, check_target
from keepfrac.errors import UserError
from keepfrac.tensors.surgery import replace

PEFT_CONFIG, PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
REFUSED = {"use_dora": False, "bias": "none", "layer_replication": None}  # what must stand there, if it is there


# a model saved with its updates --------------------------------------------------------------------------------------


def attach_saved(net: nn.Module, folder: Path) -> bool:
    """Gives a model the updates that lie among the weights of its folder; whether there were any.

    `from_pretrained` leaves them out, as tensors that the model's class does not know.
    """
    found: dict[str, dict[str, dict[str, Tensor]]] = {}
    for name, tensor in _tensors(folder):
        path, _, rest = name.partition(".updates.")
        role, _, leaf = rest.partition(".")
        found.setdefault(path, {}).setdefault(role, {})[leaf] = tensor
    for path, roles in found.items():
        updates = {role: _restored(tensors) for role, tensors in roles.items()}
        replace(net, path, AdaptedLinear(check_target(net, path), updates))
    return bool(found)


def _tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    for path in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - a safetensors file is no dictionary
                if ".updates." in name:
                    yield name, file.get_tensor(name)


def _restored(tensors: Mapping[str, Tensor]) -> Update:
    scale, start = tensors["layout"].tolist()
    u, v = tensors["u"], tensors["v"]
    update = Update(len(u), v.shape[1], rank=len(v), scale=scale, positions=tensors.get("positions"), start=int(start))
    update.load_state_dict(dict(tensors))
    return update


# PEFT ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PeftFolder:
    """A LoRA as PEFT saves it.

    Attributes:
        factors: path -> A (r, inputs), B (outputs, r) and the scale of their product.
        others: further trained tensors (a head) by parameter name.
    """

    factors: Mapping[str, tuple[Tensor, Tensor, float]]
    others: Mapping[str, Tensor]


def read_peft(folder: Path) -> PeftFolder:
    """Reads a PEFT folder; the package is not needed.

    Raises:
        UserError: it is none, or holds what is no plain LoRA (DoRA, trained biases, embeddings, pickled weights).
    """
    try:
        config = json.loads((Path(folder) / PEFT_CONFIG).read_text())
        tensors = load_file(Path(folder) / PEFT_WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(
            f"method.adapter={folder}: not a PEFT folder with {PEFT_CONFIG} and {PEFT_WEIGHTS} ({error})"
        ) from error
    wrong = {key: config[key] for key, value in REFUSED.items() if config.get(key, value) not in (value, [])}
    if config.get("peft_type") != "LORA" or wrong:
        raise UserError(
            f"method.adapter={folder}: only a plain LoRA can be read, not {wrong or config.get('peft_type')}"
        )
    pairs: dict[str, dict[str, Tensor]] = {}
    others = {}
    for name, tensor in tensors.items():
        path, _, rest = name.removeprefix(PREFIX).partition(".lora_")
        if rest in ("A.weight", "B.weight"):
            pairs.setdefault(path, {})[rest[0]] = tensor
        elif rest:
            raise UserError(f"method.adapter={folder}: {name} cannot be read; only linears' factors can")
        else:
            others[path] = tensor
    factors = {path: (p["A"], p["B"], _scale(config, path, len(p["A"]))) for path, p in pairs.items()}
    return PeftFolder(factors, others)


def _scale(config: Mapping, path: str, rank: int) -> float:
    """PEFT's patterns name a module by its path or by its end."""
    alphas = config.get("alpha_pattern") or {}
    own = [value for key, value in alphas.items() if path == key or path.endswith(f".{key}")]
    alpha = own[0] if own else config["lora_alpha"]
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


@torch.no_grad()
def start_from(net: nn.Module, peft: PeftFolder) -> None:
    """Brings a PEFT folder's factors, and its head, into a model whose linears have their updates.

    Raises:
        UserError: the folder has other linears than the model's updates, or other shapes.
    """
    modules = adapted(net)
    if modules.keys() != peft.factors.keys():
        raise UserError(
            f"method.adapter has updates of {_some(peft.factors)}, method.targets name {_some(modules)}:"
            " they must be the same"
        )
    for path, (a, b, scale) in peft.factors.items():
        (update, *more) = modules[path].parts()
        if more or update.u.shape != b.shape or update.v.shape != a.shape:
            raise UserError(
                f"method.adapter: {path} has factors {tuple(b.shape)} and {tuple(a.shape)}; with method.rank="
                f"{update.rank} they must be {tuple(update.u.shape)} and {tuple(update.v.shape)}"
            )
        update.v.copy_(a)
        update.u.copy_(b * (scale / update.scale))
    for name, tensor in peft.others.items():
        try:
            net.get_parameter(name).copy_(tensor)
        except (AttributeError, RuntimeError) as error:
            raise UserError(f"method.adapter: {name} {tuple(tensor.shape)} does not fit the model") from error


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
