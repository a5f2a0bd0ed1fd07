"""report_paths.png: how a constraint was held, run by run: share and target, multipliers, rates, terms of the loss.

Only runs that log `kept/target` have such a path. This module imports matplotlib, which takes a second.
"""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from keepfrac.reporting.figure import save
from keepfrac.reporting.page.traces import Curve, curves

PANELS: dict[str, tuple[str, ...]] = {
    "share of the dense cost": ("kept/expected", "kept/target", "kept/achieved"),
    "multipliers": ("loss/lambda1", "loss/lambda2"),
    "their rates": ("loss/lr_gates", "loss/lr_multipliers"),
    "terms of the loss": ("loss/task", "loss/lagrangian", "loss/l2"),
}
SCORES = "validation"
_PANEL = (4.2, 2.8)  # inches
_MOST = 12  # runs in one picture


def constrained(folder: Path) -> list[tuple[str, dict[str, Curve]]]:
    """Returns (name of the cell, its curves) of a sweep's runs that held a constraint."""
    places = [folder] if (folder / "metrics.csv").exists() else sorted(p for p in folder.iterdir() if p.is_dir())
    found = [(place.name, curves(place / "metrics.csv")) for place in places if (place / "metrics.csv").exists()]
    return [(name, one) for name, one in found if "kept/target" in one]


def draw_paths(folder: Path, out: Path) -> Path | None:
    """Writes report_paths.png of a sweep into a folder; returns None where no run held a constraint.

    Raises:
        UserError: the file cannot be written.
    """
    runs = constrained(folder)[:_MOST]
    if not runs:
        return None
    figure = Figure(figsize=(_PANEL[0] * (len(PANELS) + 1), _PANEL[1] * len(runs)), layout="constrained")
    grid = figure.subplots(len(runs), len(PANELS) + 1, squeeze=False)
    for axes, (name, one) in zip(grid, runs, strict=True):
        scores = tuple(metric for metric in one if metric.startswith("val/") and metric != "val/loss")
        for axis, (title, metrics) in zip(axes, [*PANELS.items(), (SCORES, scores)], strict=True):
            _panel(axis, title, metrics, one)
        axes[0].set_title(name, loc="left", fontsize=8)
    return save(figure, out / "report_paths.png")


def _panel(axis: Axes, title: str, metrics: Sequence[str], found: dict[str, Curve]) -> None:
    for metric in metrics:
        if metric in found:
            steps, values = found[metric]
            axis.plot(steps, values, label=metric, linewidth=1.2, marker="." if len(steps) < 20 else None)
    axis.set_xlabel("step", fontsize=8)
    axis.set_ylabel(title, fontsize=8)
    axis.tick_params(labelsize=7)
    axis.grid(alpha=0.25)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=7, frameon=False)
