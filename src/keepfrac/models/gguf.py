"""Weights of a GGUF file as a Hugging Face folder: dequantised once, then kept in the cache.

The values stay those of the file's few bits; only their type is float32 again.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
from functools import cache
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from keepfrac.errors import UserError
from keepfrac.models.locate import ROUNDED, note
from keepfrac.models.reading import read_config, read_tokenizer, read_weights
from keepfrac.storage.cache import cache_folder
from keepfrac.storage.files import replacing

log = logging.getLogger(__name__)

VERSION = 1


@cache
def unpacked(source: str) -> str:
    """Returns `source`, or the folder that a GGUF file was unpacked to: by its content, once per machine.

    Raises:
        UserError: the package gguf is not installed, or the disk is full.
    """
    if not source.endswith(ROUNDED):
        return source
    log.info("%s", note(source))
    path = Path(source)
    folder = cache_folder("models") / f"{_digest(path)[:32]}-{VERSION}"
    if not folder.is_dir():
        if importlib.util.find_spec("gguf") is None:
            raise UserError(
                f"{path.name} needs the package gguf, which is not installed: type `make install-decoder`, or"
                " `pip install -c .ci/constraints.txt gguf`"
            )
        _unpack(path, folder)
    return str(folder)


@cache
def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unpack(path: Path, folder: Path) -> None:
    """Writes the folder whole or not at all; jobs that start together may all do it."""
    log.info("unpacking %s into %s, once", path.name, folder)
    who, file = f"model {path}", {"gguf_file": path.name}
    try:
        with replacing(folder) as new:
            config = read_config(path.parent, who, **file)
            read_tokenizer(path.parent, who, model_max_length=config.max_position_embeddings, **file).save_pretrained(
                new
            )
            loaded, _ = read_weights(AutoModelForCausalLM, path.parent, who, config, dtype=torch.float32, **file)
            # transformers calls `loaded` quantised
            plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
            plain.load_state_dict(loaded.state_dict())
            plain.generation_config = loaded.generation_config
            plain.save_pretrained(new)
    except OSError as error:
        if not folder.is_dir():  # else another job was first
            raise UserError(f"cannot unpack {path.name} into {folder}: {error}") from error
