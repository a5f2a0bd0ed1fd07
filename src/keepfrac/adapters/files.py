"""Updates in files: a model saved with them. The folders of Hugging Face's PEFT: `peft_folder`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import safe_open
from torch import Tensor, nn

from keepfrac.adapters.layer import AdaptedLinear, Update
from keepfrac.adapters.surgery import check_target
from keepfrac.tensors.surgery import replace


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
