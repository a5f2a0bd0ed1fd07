"""report.png: a row of panels per task and model: score against keep, score against saved bytes, step time.

A panel's keep axis has one unit: a fraction of activations never stands beside a fraction of parameters.
matplotlib is imported late: a table alone does not wait for it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from keepfrac.errors import UserError
from keepfrac.reporting.arms import Arm, grouped
from keepfrac.reporting.statistics import Sample
from keepfrac.reporting.tables import heading

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_DASHES = ("-", "--", "-.", ":")
_DENSE = "#333333"
_PANEL = (4.6, 3.7)  # inches
_BAR = 0.21  # inches
_APART = 0.012  # of the axis, between two series at one x
Style = dict[str, object]


def draw(arms: Sequence[Arm], path: Path) -> Path:
    """Writes the picture of all groups of arms as a PNG.

    Raises:
        UserError: the file cannot be written.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    groups = list(grouped(arms).values())
    styles = style_of(arms)
    width = max(len(units_of(group)) or 1 for group in groups) + 2
    with plt.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        heights = [max(_PANEL[1], 1.4 + _BAR * len(group)) for group in groups]
        size = (_PANEL[0] * width, sum(heights) + 0.6)
        figure, grid = plt.subplots(
            len(groups), width, figsize=size, squeeze=False, layout="constrained", height_ratios=heights
        )
        for axes, group in zip(grid, groups, strict=True):
            _row(axes, group, styles)
        _legend(figure, grid.flat)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=130)
        except OSError as error:
            raise UserError(f"Cannot write {path}: {error.strerror or error}.") from error
        finally:
            plt.close(figure)
    return path


def _legend(figure: Figure, panels: Iterable[Axes]) -> None:
    """One legend for all panels, each series once."""
    handles: dict[str, object] = {}
    for axes in panels:
        found, labels = axes.get_legend_handles_labels()
        handles.update(zip(labels, found, strict=True))
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5, frameon=False)


def units_of(arms: Sequence[Arm]) -> list[str]:
    """The units of keep among some arms; the dense baseline has none and fits any."""
    return sorted({arm.unit or "" for arm in arms if not arm.is_dense})


def style_of(arms: Sequence[Arm]) -> dict[str, Style]:
    """Series -> colour, marker and line, the same in all panels; no two series share all three."""
    labels = dict.fromkeys(arm.label for arm in arms if not arm.is_dense)
    keys = ("color", "marker", "linestyle")
    looks = zip(*map(itertools.cycle, (_COLOURS, _MARKERS, _DASHES)), strict=True)
    return {label: dict(zip(keys, look, strict=True)) for label, look in zip(labels, looks, strict=False)}


def _row(axes: Sequence[Axes], arms: list[Arm], styles: dict[str, Style]) -> None:
    units = units_of(arms) or [""]
    for axis in (*axes[1 : len(units)], axes[-2]):
        axis.sharey(axes[0])
    for axis, unit in zip(axes, units, strict=False):
        _score_against_keep(axis, [arm for arm in arms if arm.is_dense or (arm.unit or "") == unit], styles)
        axis.set_xlabel(f"kept fraction, achieved\n(of {unit or 'what: not stated'})")
    for axis in axes[1 : len(units)]:
        axis.set_title("another unit of keep: not comparable", loc="left", fontsize=10)
    for axis in axes[len(units) : -2]:
        axis.set_axis_off()
    _score_against_bytes(axes[-2], arms, styles)
    _step_time(axes[-1], arms, styles)
    axes[0].set_title(f"{heading(arms)}\n{_over(arms)}", loc="left", fontsize=10, fontweight="bold")
    for axis in axes[:-1]:
        axis.set_ylabel(f"test {arms[0].metric}")


def _over(arms: list[Arm]) -> str:
    """How many seeds the points and bars stand for."""
    least, most = min(arm.test.n for arm in arms), max(arm.test.n for arm in arms)
    if most < 2:
        return "one seed: spread not known"
    return f"{most if least == most else f'{least} to {most}'} seeds; bars: sd"


def _score_against_keep(axis: Axes, arms: list[Arm], styles: dict[str, Style]) -> None:
    """Series are set slightly apart, or their error bars would hide each other."""
    series = list(dict.fromkeys(arm.label for arm in arms if not arm.is_dense))
    found = [x for x in (_kept(arm) for arm in arms if not arm.is_dense) if x is not None]
    apart = _APART * (max(found) - min(found)) if found else 0.0

    def kept(arm: Arm) -> Sample:
        x = _kept(arm)
        middle = (len(series) - 1) / 2
        return Sample(0) if x is None else Sample(1, x + apart * (series.index(arm.label) - middle))

    _series(axis, arms, styles, kept)
    _dense_line(axis, arms)
    axis.margins(x=0.08)


def _kept(arm: Arm) -> float | None:
    return arm.keep_asked if arm.keep_achieved is None else arm.keep_achieved


def _score_against_bytes(axis: Axes, arms: list[Arm], styles: dict[str, Style]) -> None:
    def mebibytes(arm: Arm) -> Sample:
        saved = arm.saved_bytes
        return Sample(saved.n, *(None if part is None else part / 2**20 for part in (saved.mean, saved.sd)))

    _series(axis, arms, styles, mebibytes)
    _dense_line(axis, arms)
    for arm in arms:
        if arm.is_dense and arm.test.mean is not None and arm.saved_bytes.mean is not None:
            axis.plot(arm.saved_bytes.mean / 2**20, arm.test.mean, "*", color=_DENSE, markersize=13, zorder=4)
    axis.set_xlabel("saved for the backward pass, measured (MiB)")
    axis.set_title("score for the memory", loc="left", fontsize=10)


def _series(axis: Axes, arms: list[Arm], styles: dict[str, Style], x_of: Callable[[Arm], Sample]) -> None:
    """One line with markers and error bars per series."""
    for label, style in styles.items():
        points = [(x_of(arm), arm.test) for arm in arms if arm.label == label and not arm.is_dense]
        points = sorted((p for p in points if p[0].mean is not None and p[1].mean is not None), key=_x)
        if points:
            axis.errorbar(
                [x.mean for x, _ in points],
                [y.mean for _, y in points],
                xerr=[x.sd or 0 for x, _ in points],
                yerr=[y.sd or 0 for _, y in points],
                label=label,
                **style,
                markersize=6.5,
                linewidth=1.4,
                capsize=3,
                alpha=0.9,
            )
    axis.grid(alpha=0.25)


def _x(point: tuple[Sample, Sample]) -> float:
    return point[0].mean or 0.0


def _dense_line(axis: Axes, arms: list[Arm]) -> None:
    """The dense baseline: a line at its mean, a band of one sd."""
    for arm in arms:
        if arm.is_dense and arm.test.mean is not None:
            axis.axhline(arm.test.mean, color=_DENSE, linewidth=1.4, label="nosp (dense)", zorder=1)
            sd = arm.test.sd or 0.0
            axis.axhspan(arm.test.mean - sd, arm.test.mean + sd, color=_DENSE, alpha=0.10, linewidth=0, zorder=0)


def _step_time(axis: Axes, arms: list[Arm], styles: dict[str, Style]) -> None:
    """Bars of step time over dense; the number stands at the end of its bar."""
    timed = [arm for arm in arms if not arm.is_dense and arm.step_ratio.mean is not None]
    axis.set_title("speed", loc="left", fontsize=10)
    if not timed:
        axis.text(0.5, 0.5, "step time was not measured", ha="center", transform=axis.transAxes)
        axis.set_axis_off()
        return
    names = [f"{arm.label}  {arm.keep_asked:g}" if arm.keep_asked is not None else arm.label for arm in timed]
    ratios = [arm.step_ratio.mean or 0.0 for arm in timed]
    errors = [arm.step_ratio.sd or 0.0 for arm in timed]
    places = range(len(timed))
    axis.barh(places, ratios, xerr=errors, color=[styles[arm.label]["color"] for arm in timed], height=0.7, capsize=3)
    for place, ratio, error in zip(places, ratios, errors, strict=True):
        axis.text(ratio + error, place, f" {ratio:.2f}", va="center", fontsize=9)
    axis.axvline(1.0, color=_DENSE, linewidth=1.4)
    axis.set_yticks(places, names)
    axis.invert_yaxis()
    axis.margins(x=0.12)
    axis.set_xlabel("step time, ratio to dense (1 = dense)")
