"""export=sparse: a smaller file of a model with zeros, from which the exact dense weights come back.

Each tensor for which it pays is stored as one bit per element (zero or not) and the values of those that are not zero,
in order; others whole. `int8` stores these values as 8-bit numbers with one scale a row: smaller, and not exact.

    from src.models.packed import load_packed
    net = load_packed("multirun/<name>/<cell>/export/sparse")

or, as a plain Hugging Face folder again: `python -m src.models.packed FOLDER NEW_FOLDER`.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from keepfrac.errors import UserError
from keepfrac.models.load import PACKED, auto_class, silence_library_logging
from keepfrac.models.reading import read_config
from keepfrac.storage.commands import Parser, complain
from keepfrac.storage.redact import first_line
from keepfrac.tensors.bits import pack_bits, unpack_bits

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FILE = PACKED
BITS, VALUES, SCALES = "#bits", "#values", "#scales"
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _nonzero(tensor: Tensor) -> Tensor:
    """Elements with any bit set, of a flat tensor: -0.0 counts, so that it comes back."""
    return tensor.contiguous().flatten().view(_INTEGERS[tensor.element_size()]) != 0


def _pays(kept: int, tensor: Tensor) -> bool:
    return kept * tensor.element_size() + (tensor.numel() + 7) // 8 < tensor.numel() * tensor.element_size()


def packed_bytes(state: Mapping[str, Tensor]) -> int:
    """Returns the bytes of the tensors as `pack` stores them, exact values, without the file's header."""
    total = 0
    for tensor in _distinct(state).values():
        kept = int(_nonzero(tensor).sum())
        whole = tensor.numel() * tensor.element_size()
        total += kept * tensor.element_size() + (tensor.numel() + 7) // 8 if _pays(kept, tensor) else whole
    return total


def pack(state: Mapping[str, Tensor], int8: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns the tensors of a file, and its metadata (shapes, and names that share a tensor).

    Args:
        state: a state dict.
        int8: whether the values of what is packed become 8-bit numbers, scaled by row.
    """
    tensors: dict[str, Tensor] = {}
    shapes: dict[str, list[int]] = {}
    for name, tensor in _distinct(state).items():
        mask = _nonzero(tensor)
        if not _pays(int(mask.sum()), tensor):
            tensors[name] = tensor.contiguous().clone()
            continue
        shapes[name] = list(tensor.shape)
        tensors[f"{name}{BITS}"] = pack_bits(mask)
        values = tensor.contiguous().flatten()
        if int8 and tensor.ndim == 2:
            scales = (tensor.abs().amax(1) / 127).clamp_min(torch.finfo(tensor.dtype).tiny)
            tensors[f"{name}{SCALES}"] = scales
            values = (tensor / scales[:, None]).round().to(torch.int8).flatten()
        tensors[f"{name}{VALUES}"] = values[mask]
    return tensors, {"shapes": json.dumps(shapes), "shared": json.dumps(_shared(state))}


def unpack(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, Tensor]:
    """Returns the dense state dict of what `pack` made."""
    shapes, shared = json.loads(metadata["shapes"]), json.loads(metadata["shared"])
    state = {name: tensor for name, tensor in tensors.items() if "#" not in name}
    for name, shape in shapes.items():
        values, scales = tensors[f"{name}{VALUES}"], tensors.get(f"{name}{SCALES}")
        count = torch.Size(shape).numel()
        dense = torch.zeros(count, dtype=values.dtype)
        dense[unpack_bits(tensors[f"{name}{BITS}"], count)] = values
        state[name] = dense.view(shape) if scales is None else dense.view(shape) * scales[:, None]
    return state | {name: state[other] for name, other in shared.items()}


def _shared(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Names of tied tensors, and the first name of each."""
    first: dict[tuple, str] = {}
    found = {}
    for name, tensor in state.items():
        key = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        if tensor.numel() and first.setdefault(key, name) != name:
            found[name] = first[key]
    return found


def _distinct(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    shared = _shared(state)
    return {name: tensor for name, tensor in state.items() if name not in shared}


def save_packed(net: PreTrainedModel, folder: Path, int8: bool = False) -> Path:
    """Writes the model's configuration and its packed weights into a folder.

    Raises:
        UserError: none of its tensors would become smaller.
    """
    tensors, metadata = pack({name: tensor.cpu() for name, tensor in net.state_dict().items()}, int8)
    if metadata["shapes"] == "{}":
        raise UserError("export=sparse: no matrix of this model is sparse enough for a smaller file")
    net.config.architectures = [type(net).__name__]
    net.config.save_pretrained(folder)
    save_file(tensors, folder / FILE, metadata={"format": "pt", **metadata})
    return folder


def load_state(folder: Path) -> dict[str, Tensor]:
    """Returns the dense state dict of a folder that `save_packed` wrote.

    Raises:
        UserError: the file cannot be read.
    """
    path = Path(folder) / FILE
    try:
        with safe_open(path, framework="pt") as file:
            return unpack({name: file.get_tensor(name) for name in file.keys()}, file.metadata())  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} cannot be read as packed weights: {error}") from error


def load_packed(folder: Path) -> PreTrainedModel:
    """Returns the model of a folder that `save_packed` wrote, in eval mode.

    Raises:
        UserError: the file cannot be read, does not fit the configuration, or that one cannot be read.
    """
    net = _empty(Path(folder))
    try:
        net.load_state_dict(load_state(Path(folder)))
    except RuntimeError as error:
        raise UserError(f"{Path(folder) / FILE} does not fit config.json: {first_line(error)}") from error
    return net.eval()


def _empty(folder: Path) -> PreTrainedModel:
    """The model of a folder's configuration, with random weights."""
    config = read_config(folder, f"model {folder}")
    return auto_class(config).from_config(config, trust_remote_code=False)


def restore(folder: Path, target: Path) -> None:
    """Writes a plain Hugging Face folder: the dense weights, and the other files of the packed one.

    Raises:
        UserError: both are the same folder, or the packed weights cannot be read.
    """
    if folder.resolve() == target.resolve():
        raise UserError(f"{target}: give another folder than that of the packed weights")
    load_packed(folder).save_pretrained(target)
    for path in folder.iterdir():
        if path.is_file() and path.name not in (FILE, "config.json"):
            shutil.copyfile(path, target / path.name)


def main(arguments: list[str]) -> int:
    """Restores a plain Hugging Face folder; returns the exit code."""
    parser = Parser(prog="python -m src.models.packed", description="Restores a plain Hugging Face folder.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a folder of packed weights")
    parser.add_argument("target", type=Path, metavar="NEW_FOLDER", help="the plain one")
    chosen = parser.parse_args(arguments)
    silence_library_logging()
    try:
        restore(chosen.folder, chosen.target)
    except UserError as error:
        return complain(error)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
