"""Where a sparse backward pass saves less: bytes and gradient error, place by place."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from keepfrac.errors import UserError
from keepfrac.measurement.costs import saved_bytes
from keepfrac.measurement.peak import peak_bytes
from keepfrac.run.probe import probe_of


def sites(folder: Path) -> dict:
    """Measures the run's method on its probe batch, starting from the delivered weights.

    Returns:
        `total`: saved bytes of method and dense and the gradient's fidelity; `sites`: a row per place.

    Raises:
        UserError: the folder is not a run's, or its method has no sites.
    """
    probe = probe_of(folder)
    figures, by_weight = probe.fidelity()
    own, dense = probe.steps()
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
