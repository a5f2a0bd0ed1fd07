"""Configuration, tokenizer and weights as Transformers reads them: the only calls of `from_pretrained`.

No code of a folder is ever run, no adapter is attached unasked, and what cannot be read is one line that names the
file. What was read is held against the task in `models.matching`.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from keepfrac.adapters.files import attach_saved
from keepfrac.adapters.peft_folder import PEFT_CONFIG
from keepfrac.errors import UserError
from keepfrac.storage.redact import first_line

CONFIG, INDEX = "config.json", "model.safetensors.index.json"
POINTER = b"version https://git-lfs"
NAME_A_TOKENIZER = "save its tokenizer into the folder, or name one: model.tokenizer=<folder or hub name>"
CONFIG_FILES = (CONFIG,)
TOKENIZER_FILES = ("tokenizer*.json", "vocab.json", "special_tokens_map.json", "added_tokens.json")
WEIGHT_FILES = ("*.safetensors", INDEX, "pytorch_model*.bin")
"""Where the fault is looked for when one of the three cannot be read."""
VOCABULARIES = ("tokenizer.json", "vocab*", "*.model", "*.spm", "*.tiktoken", "tekken.json")
"""Files that tokenizers are made of; a tokenizer's class may name others."""


def read_config(source: str | Path, who: str, **more: Any) -> PreTrainedConfig:
    """Returns the configuration of a folder or hub name.

    Args:
        source: folder or hub name.
        who: what was asked for, for the message, such as "distill.teacher=<name>".
        more: further arguments of `from_pretrained`.

    Raises:
        UserError: it cannot be read, needs code of its own, or is no model's folder.
    """
    if problem := _not_a_model(Path(source), more):
        raise UserError(f"{who}: {problem}")
    with _named(who, source, CONFIG, CONFIG_FILES):
        return AutoConfig.from_pretrained(source, trust_remote_code=False, **more)


def read_tokenizer(
    source: str | Path, who: str, way_out: str = NAME_A_TOKENIZER, **more: Any
) -> PreTrainedTokenizerBase:
    """Returns the tokenizer of a folder or hub name.

    Args:
        source: folder or hub name.
        who: what was asked for, for the message.
        way_out: what to do where there is none, for the message.
        more: further arguments of `from_pretrained`.

    Raises:
        UserError: it cannot be read, needs code of its own, or has no vocabulary.
    """
    absent = _no_files(Path(source), VOCABULARIES)
    with _named(who, source, "tokenizer.json", TOKENIZER_FILES, f"{absent}; {way_out}" if absent else None):
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **more)
    if problem := _no_vocabulary(Path(source), tokenizer, more):
        raise UserError(f"{who}: {problem}; {way_out}")
    return tokenizer


def read_weights(
    auto: Any, source: str | Path, who: str, config: PreTrainedConfig, **more: Any
) -> tuple[PreTrainedModel, dict]:
    """Returns a model with the updates saved among its weights, and which weights are missing or of another shape.

    Args:
        auto: an Auto class.
        source: folder or hub name.
        who: what was asked for, for the message.
        config: as the model is to be made.
        more: further arguments of `from_pretrained`.

    Raises:
        UserError: the weights cannot be read, are no plain tensors, or the attention is not to be had.
    """
    check_attention(auto, config, more.get("attn_implementation"), who)
    with _named(who, source, "weights", WEIGHT_FILES):
        net, info = auto.from_pretrained(
            source, config=config, trust_remote_code=False, weights_only=True, output_loading_info=True, **more
        )
        attach_saved(net, Path(source))
    return net, info


def check_attention(auto: Any, config: PreTrainedConfig, attention: str | None, who: str) -> None:
    """Refuses an attention implementation that the model's class does not have.

    Raises:
        UserError: names the one that it has.
    """
    if attention == "sdpa" and not has_sdpa(auto, config):
        raise UserError(
            f"{who}: a {config.model_type} model has no attention of the kind sdpa: type model.attention=eager"
        )


def has_sdpa(auto: Any, config: PreTrainedConfig) -> bool:
    """Returns whether the class that an Auto class makes of a configuration computes attention by sdpa."""
    made = auto._model_mapping.get(type(config), None)
    classes = made if isinstance(made, tuple | list) else (made,)
    return all(getattr(one, "_supports_sdpa", True) for one in classes)


# what is wrong with a folder ------------------------------------------------------------------------------------------


@contextmanager
def _named(
    who: str, source: str | Path, what: str, files: Sequence[str], otherwise: str | None = None
) -> Iterator[None]:
    """Makes of whatever a library raises one line that names the file, or says `otherwise` where none is damaged."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # tokenizers, safetensors and pickle have exceptions of their own
        folder = Path(source)
        problem = _foreign_code(error) or (next(faults(folder, files), None) if folder.is_dir() else None)
        raise UserError(f"{who}: {problem or otherwise or f'{what} cannot be read: {first_line(error)}'}") from error


def faults(folder: Path, files: Sequence[str]) -> Iterator[str]:
    """Yields what is wrong with the files of these names or patterns, each file's name first."""
    for path in (path for pattern in files for path in sorted(folder.glob(pattern))):
        check = CHECKS.get(path.suffix)
        if check and path.is_file() and (problem := _no_content(path) or check(path)):
            yield f"{path.name} {problem}"
    yield from _missing_shards(folder / INDEX)


def _no_content(path: Path) -> str | None:
    if _is_pointer(path):
        return "is a pointer of git-lfs, not the file itself: type `git lfs pull` in its folder"
    return None if path.stat().st_size else "is empty"


def _is_pointer(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(POINTER)) == POINTER


def _json_problem(path: Path) -> str | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        return f"is no JSON ({first_line(error)})"
    return None if isinstance(found, dict) else f"holds a {type(found).__name__}, not an object"


def _safetensors_problem(path: Path) -> str | None:
    try:
        with safe_open(path, framework="pt"):
            return None
    except (OSError, SafetensorError) as error:
        return f"is damaged or cut short ({path.stat().st_size} bytes: {first_line(error)})"


def _pickle_problem(path: Path) -> str | None:
    try:
        torch.load(path, weights_only=True, map_location="meta")
    except pickle.UnpicklingError:
        return "holds more than tensors, and is not unpickled: save the model as model.safetensors"
    except Exception as error:  # noqa: BLE001 - torch raises what its reader of archives does
        return f"is damaged or cut short ({path.stat().st_size} bytes: {first_line(error)})"
    return None


CHECKS: dict[str, Callable[[Path], str | None]] = {
    ".json": _json_problem,
    ".safetensors": _safetensors_problem,
    ".bin": _pickle_problem,
}


def _missing_shards(index: Path) -> Iterator[str]:
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return
    yield from (
        f"{name} is missing, which {INDEX} names" for name in sorted(names) if not (index.parent / name).exists()
    )


def _foreign_code(error: Exception) -> str | None:
    if "custom code" not in str(error):
        return None
    return "config.json asks for code of its own (auto_map), which is not run: give a model that Transformers has"


def _not_a_model(folder: Path, more: dict) -> str | None:
    """What a folder is that is no model's, and how it is used."""
    if not folder.is_dir() or "gguf_file" in more:
        return None
    if (folder / PEFT_CONFIG).exists():
        return (
            f"{PEFT_CONFIG} makes it a PEFT adapter: give its base model as model.name=, and the folder as method=lora"
            " method.adapter=<folder>"
        )
    if (folder / CONFIG).exists():
        return None
    if (folder / "model" / CONFIG).exists():
        return f"it is a run's folder: type model=from_run model.run={folder}, or give {folder / 'model'}"
    return f"there is no {CONFIG} in {folder}: give a folder with {CONFIG} and model.safetensors"


def _no_files(folder: Path, names: Sequence[str]) -> str | None:
    if not folder.is_dir() or any(path for name in names for path in folder.glob(name)):
        return None
    return f"there is no tokenizer in {folder} (tokenizer.json or a vocabulary)"


def _no_vocabulary(folder: Path, tokenizer: PreTrainedTokenizerBase, more: dict) -> str | None:
    """Transformers makes a tokenizer of special tokens alone where a folder has none."""
    own = tokenizer.vocab_files_names.values()
    if own and folder.is_dir() and "gguf_file" not in more:
        names = (*VOCABULARIES, *own)
        files = sorted({path for name in names for path in folder.glob(name) if path.is_file()})
        pointers = (f"{path.name} {_no_content(path)}" for path in files if _is_pointer(path))
        if problem := _no_files(folder, names) or next(pointers, None):
            return problem
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        return "its tokenizer knows no token but the special ones"
    return None
