"""`python -m src.measure FOLDER`: sizes of a delivered model, whole and by part.

--sites: what a sparse backward pass saves, place by place. --latency: times beside the dense original, kept in
FOLDER/latency.json.

FOLDER is a run's folder, or any Hugging Face folder (without --sites).
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from keepfrac.errors import UserError


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
    from keepfrac.measurement import costs
    from keepfrac.measurement.parts import parts
    from keepfrac.measurement.sparsity import sparsity
    from keepfrac.models.load import load_body

    net = load_body(model_folder(folder))
    found = costs.size(net, model_folder(folder))
    return {**found, "parts": parts(net), "sparsity": sparsity(net, found["macs"])}


def sites(folder: Path) -> dict:
    """Measures the run's method on its probe batch, starting from the delivered weights.

    Returns:
        `total`: saved bytes of method and dense and the gradient's fidelity; `sites`: a row per place.

    Raises:
        UserError: the folder is not a run's, or its method has no sites.
    """
    from keepfrac.run.probe import probe_of

    probe = probe_of(folder)
    figures, by_weight = probe.fidelity()
    own, dense = probe.steps()
    from keepfrac.measurement.costs import saved_bytes
    from keepfrac.measurement.peak import peak_bytes

    saver = probe.module.backward_saver
    if saver is None or not saver.report():
        raise UserError(f"{folder}: the method {probe.module.name} has no sites")
    saved = {
        "saved_bytes": saved_bytes(probe.module.net, own),
        "saved_bytes_dense": saved_bytes(probe.dense, dense),
        "peak_bytes": peak_bytes(lambda: own().backward()),
        "peak_bytes_dense": peak_bytes(lambda: dense().backward()),
    }
    rows = [row | by_weight.get(f"{row['site']}.weight", {}) for row in saver.report()]
    # late's rows are counted against a GPU's dense: masks of a byte, fused attention
    if all(row["kind"] != "late" for row in rows):
        freed = sum(row["bytes_dense"] - row["bytes_kept"] for row in rows)
        saved["saved_bytes_predicted"] = saved["saved_bytes_dense"] - freed
    return {"total": {**saved, **figures}, "sites": rows}


def latencies(folder: Path, threads: int, repeats: int, tell: Callable[[str], None]) -> dict:
    """Measures the delivered model and its dense original in turns, and writes latency.json into the folder."""
    from keepfrac.measurement.latency import latency, save

    found = latency(model_folder(folder), threads, repeats, tell)
    save(found, folder / "latency.json")
    return found


def show(found: dict, console: Console) -> None:
    """Prints the sites as a table, and the totals below."""
    table = Table(
        "site", "kept", "MiB dense", "MiB kept", "MiB predicted", "cosine dW", "rel. error dW", "norm ratio", ""
    )
    for row in found["sites"]:
        mib = [f"{row[key] / 2**20:.3f}" for key in ("bytes_dense", "bytes_kept", "bytes_predicted")]
        near = [f"{row[key]:.4f}" if key in row else "" for key in ("cosine", "relative_error", "norm_ratio")]
        achieved = "" if row["achieved"] is None else f"{row['achieved']:.4f}"
        table.add_row(row["site"], achieved, *mib, *near, row["fallback"] or "")
    console.print(table)
    for name, value in found["total"].items():
        console.print(f"{name:24s} {value / 2**20:12.3f} MiB" if "bytes" in name else f"{name:24s} {value:12.5f}")


def _tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main(arguments: list[str]) -> int:
    """Measures and prints; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m src.measure", description=__doc__)
    parser.add_argument("folder", type=Path, help="a run's folder, or a Hugging Face folder")
    parser.add_argument("--sites", action="store_true", help="bytes and gradient error of each sparse place")
    parser.add_argument("--latency", action="store_true", help="p50, p95, throughput, peak memory beside dense")
    parser.add_argument("--threads", type=int, default=1, help="with --latency: of the CPU (1)")
    parser.add_argument("--repeats", type=int, default=50, help="with --latency: rounds at each place (50)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    chosen = parser.parse_args(arguments)
    from keepfrac.storage import hub

    hub.settle()
    try:
        if chosen.latency:
            quiet = chosen.json
            found = latencies(
                chosen.folder, chosen.threads, chosen.repeats, lambda line: None if quiet else _tell(line)
            )
        else:
            found = sites(chosen.folder) if chosen.sites else sizes(chosen.folder)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    if chosen.json:
        sys.stdout.write(json.dumps(found) + "\n")
    elif chosen.latency:
        _tell(json.dumps({key: value for key, value in found.items() if key != "rows"}))
    elif chosen.sites:
        show(found, Console())
    else:
        from keepfrac.measurement.parts import lines
        from keepfrac.measurement.sparsity import show as show_sparsity

        totals = {name: value for name, value in found.items() if isinstance(value, int)}
        sys.stdout.writelines(f"{name:22s} {value:>16,}\n" for name, value in totals.items())
        _tell("\n".join(["", *lines(found["parts"])]))
        show_sparsity(found["sparsity"], Console())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
