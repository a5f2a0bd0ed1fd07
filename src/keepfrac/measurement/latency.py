"""Latency of a delivered model and its dense original: p50, p95 and throughput, file size, peak memory.

The two are timed in turns, in one process with a fixed number of threads, after a warm-up; the peak of memory is that
of a process of its own. The dense original has random weights: its time does not depend on them.
"""

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from keepfrac.measurement.costs import bytes_on_disk
from keepfrac.models.dense_reference import blueprint
from keepfrac.models.load import load_body, silence_library_logging
from keepfrac.storage.files import write_atomically
from keepfrac.storage.provenance import device_name
from keepfrac.tensors.clock import interleaved_seconds

SIDES = ("own", "dense")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MIB = 2**20


@dataclass(frozen=True)
class Conditions:
    """One set of conditions of the grid.

    Args:
        way: eager | compile.
        dtype: float32 | bfloat16.
        batch: sentences.
        length: tokens of each.
    """

    way: str
    dtype: str
    batch: int
    length: int


GRID = tuple(
    Conditions(way, dtype, batch, length)
    for way in ("eager", "compile")
    for dtype in ("float32", "bfloat16")
    for batch in (1, 8, 32)
    for length in (32, 128)
)


def percentile(values: list[float], share: float) -> float:
    """Returns the value below which `share` of the sorted values lie, by the nearest rank."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def row(where: Conditions, seconds: Mapping[str, list[float]]) -> dict[str, Any]:
    """Returns one row: p50 and p95 in ms and sentences per second of both models, and the ratio of their p50."""
    figures: dict[str, Any] = {**vars(where)}
    for side in SIDES:
        p50 = percentile(seconds[side], 0.50)
        figures[f"{side}_p50_ms"], figures[f"{side}_p95_ms"] = (1e3 * p50, 1e3 * percentile(seconds[side], 0.95))
        figures[f"{side}_per_second"] = where.batch / p50
    return {**figures, "ratio": figures["own_p50_ms"] / figures["dense_p50_ms"]}


@torch.inference_mode()
def grid(nets: Mapping[str, Any], places: tuple[Conditions, ...], repeats: int) -> Iterator[dict[str, Any]]:
    """Yields a row per set of conditions; one that cannot be measured says why in `failed`."""
    for where in places:
        torch.compiler.reset()
        forwards = {side: _forward(net, where) for side, net in nets.items()}
        try:
            found = row(where, interleaved_seconds(forwards, repeats, 2, DEVICE))
        except Exception as error:  # noqa: BLE001 - a compiler that is missing or fails: the others are measured
            found = {**vars(where), "failed": " ".join(f"{type(error).__name__}: {error}".split())[:200]}
        yield found


def _forward(net: Any, where: Conditions) -> Callable[[], object]:
    net = net.to(getattr(torch, where.dtype)).eval()
    size = (where.batch, where.length)
    ids = torch.randint(1000, 2000, size, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    ids = ids % net.config.vocab_size
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    called: Callable = torch.compile(net, dynamic=False) if where.way == "compile" else net
    return lambda: called(**inputs)


def load(folder: Path) -> dict[str, Any]:
    """Returns the delivered model of a folder, and its dense original."""
    silence_library_logging()
    own = load_body(folder).to(DEVICE).eval()
    return {"own": own, "dense": blueprint(own)(DEVICE)}


def file_bytes(nets: Mapping[str, Any], folder: Path) -> dict[str, int]:
    """Bytes of both models' weight files."""
    with tempfile.TemporaryDirectory() as temporary:
        nets["dense"].float().save_pretrained(temporary)
        return {"own": bytes_on_disk(folder), "dense": bytes_on_disk(Path(temporary))}


def peaks(folder: Path, threads: int) -> dict[str, float]:
    """Returns the peak MiB of each model's own process, for one forward of 32 sentences of 128 tokens."""
    found = {}
    for side in SIDES:
        command = [sys.executable, "-m", "keepfrac.measurement.latency", str(folder), side, str(threads)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        found[side] = float(done.stdout)
    return found


def latency(folder: Path, threads: int, repeats: int, log_line: Callable[[str], None]) -> dict[str, Any]:
    """Measures all of it.

    Args:
        folder: a model's.
        threads: of the CPU.
        repeats: rounds of each measurement, after the warm-up.
        log_line: called with each line of what was measured.
    """
    torch.set_num_threads(threads)
    nets = load(folder)
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if DEVICE == "cuda" else device_name("cpu"),
        "threads": threads,
        "repeats": repeats,
        "file_bytes": file_bytes(nets, folder),
        "peak_mib": peaks(folder, threads),
        "rows": [],
    }
    for one in grid(nets, GRID, repeats):
        found["rows"].append(one)
        log_line(line(one))
    return found


def line(one: Mapping[str, Any]) -> str:
    """Returns a row in words."""
    conditions = f"{one['way']:8s}{one['dtype']:9s} batch {one['batch']:<3d} length {one['length']:<4d}"
    if "failed" in one:
        return f"{conditions} not measured: {one['failed']}"
    sides = "   ".join(
        f"{side} p50 {one[f'{side}_p50_ms']:.2f} p95 {one[f'{side}_p95_ms']:.2f} ms, {one[f'{side}_per_second']:.1f}/s"
        for side in SIDES
    )
    return f"{conditions} {sides}   to dense {one['ratio']:.3f}"


def _peak(arguments: list[str]) -> float:
    """The peak MiB of one forward pass, measured in a process of its own."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("side", choices=SIDES)
    parser.add_argument("threads", type=int)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    silence_library_logging()
    net = load_body(chosen.folder).to(DEVICE)
    if chosen.side == "dense":
        build = blueprint(net)
        del net
        net = build(DEVICE)
    with torch.inference_mode():
        _forward(net, Conditions("eager", "float32", 32, 128))()
    if DEVICE == "cuda":
        return torch.cuda.max_memory_allocated() / MIB
    return _peak_resident() / MIB


def _peak_resident() -> int:
    """Bytes that this process held at most; Linux hands the figure of getrusage on from the parent."""
    status = Path("/proc/self/status")
    if status.exists():
        (high,) = [one for one in status.read_text().splitlines() if one.startswith("VmHWM")]
        return 1024 * int(high.split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def save(found: Mapping[str, Any], path: Path) -> None:
    """Writes latency.json."""
    write_atomically(path, json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    sys.stdout.write(f"{_peak(sys.argv[1:]):.1f}\n")
