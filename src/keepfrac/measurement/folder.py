"""What is measured of a folder: sizes of the model in it, and its times relative to the dense original."""

from collections.abc import Callable, Mapping
from pathlib import Path

from rich.console import Console

from keepfrac.errors import UserError
from keepfrac.measurement import costs, parts, sparsity
from keepfrac.measurement.latency import latency, save
from keepfrac.models.load import load_body


def model_folder(folder: Path) -> Path:
    """Returns the model's folder of a run, or the folder itself.

    Raises:
        UserError: neither holds a model.
    """
    for candidate in (folder / "model", folder):
        if (candidate / "config.json").exists():
            return candidate
    raise UserError(f"{folder}: neither a run's folder (with model/) nor a Hugging Face folder (with config.json)")


def sizes(folder: Path) -> dict:
    """Returns the sizes of the model in a folder, whole and by part, and how sparse it is."""
    net = load_body(model_folder(folder))
    found = costs.size(net, model_folder(folder))
    return {**found, "parts": parts.parts(net), "sparsity": sparsity.sparsity(net, found["macs"])}


def show(found: Mapping, console: Console) -> None:
    """Prints what `sizes` returned."""
    totals = {name: value for name, value in found.items() if isinstance(value, int)}
    lines = [f"{name:22s} {value:>16,}" for name, value in totals.items()]
    console.out("\n".join([*lines, "", *parts.lines(found["parts"])]), highlight=False)
    sparsity.show(found["sparsity"], console)


def latencies(folder: Path, threads: int, repeats: int, log_line: Callable[[str], None]) -> dict:
    """Measures the delivered model and its dense original in turns, and writes latency.json into the folder.

    Args:
        folder: a run's, or a model's.
        threads: of the CPU, >= 1.
        repeats: rounds at each place, >= 1.
        log_line: called with each line of what was measured.

    Raises:
        UserError: no model in it, or a number below 1.
    """
    for key, value in {"threads": threads, "repeats": repeats}.items():
        if value < 1:
            raise UserError(f"--{key} {value}: must be a whole number >= 1")
    found = latency(model_folder(folder), threads, repeats, log_line)
    save(found, folder / "latency.json")
    return found
