"""report.png: a row of panels per table: score against bytes kept for the backward pass, against keep, and step time.

The score's axis spans several standard errors of the test set, so that noise looks like noise; one arm far off does
not squeeze the others: it is drawn at the edge with its value. A panel's keep axis has one unit: a fraction of
activations never shares an axis with a fraction of parameters. This module imports matplotlib, which takes a second.
"""

import itertools
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from keepfrac.errors import UserError
from keepfrac.reporting.arms import Arm, group_of, grouped
from keepfrac.reporting.statistics import Sample
from keepfrac.reporting.tables import heading, letters, standard_error

BYTES = "bytes kept for the backward pass,\nshare of dense"
BETTER = "up: a better score; left: less memory"
DENSE = "#333333"
_COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F3C8D", "#8C564B", "#BCBD22", "#E73F74",
    "#1B4F1B", "#17BECF", "#4B4B8F", "#C0A070",
)  # fmt: skip
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LOOK = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "keepfrac"}
_PANEL = (4.6, 3.9)  # inches
_BAR = 0.24  # inches
_WHITE = {"facecolor": "white", "edgecolor": "none", "pad": 0}
ERRORS = 3  # standard errors of the test set that the score's axis spans on each side of dense, at least
_FENCE = 3  # quartile distances beyond which a value does not set an axis
Style = dict[str, str]
Interval = tuple[float, float]


def draw(arms: Sequence[Arm], path: Path) -> Path:
    """Writes the picture of all groups of arms as a PNG.

    Raises:
        UserError: the file cannot be written.
    """
    groups = list(grouped(arms, group_of).values())
    styles = style_of(arms)
    width = max(len(units_of(group)) for group in groups) + 2
    heights = [max(_PANEL[1], 1.4 + _BAR * len(group)) for group in groups]
    with mpl.rc_context(LOOK):
        size = (_PANEL[0] * width, sum(heights) + 0.6)
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(len(groups), width, squeeze=False, height_ratios=heights)
        for axes, group in zip(grid, groups, strict=True):
            _row(axes, group, styles)
        legend(figure, grid.flat)
        return save(figure, path)


def save(figure: Figure, path: Path) -> Path:
    """Writes a picture in the form that its name ends with; the same figures give the same file.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130, metadata={"Date": None} if path.suffix == ".svg" else None)
    except (OSError, ValueError) as error:
        raise UserError(f"Cannot write {path}: {getattr(error, 'strerror', None) or error}.") from error
    return path


def legend(figure: Figure, panels: Iterable[Axes]) -> None:
    """Puts one legend below all panels, each series once, in as many columns as fit."""
    handles: dict[str, object] = {}
    for axes in panels:
        found, labels = axes.get_legend_handles_labels()
        handles.update(zip(labels, found, strict=True))
    if handles:
        columns = max(1, int(figure.get_figwidth() * 9 / (max(map(len, handles)) + 6)))
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, frameon=False)


def units_of(arms: Sequence[Arm]) -> list[str]:
    """Returns the units of keep among some arms; what keeps everything has none and needs no panel."""
    return sorted({arm.unit for arm in arms if arm.unit})


def style_of(arms: Sequence[Arm]) -> dict[str, Style]:
    """Returns colour, marker and name of each series: one colour per method, its variants by their markers."""
    methods = grouped((arm for arm in arms if not arm.is_dense), lambda arm: arm.method)
    short, styles = letters(arms), {}
    for colour, (method, of_method) in zip(itertools.cycle(_COLOURS), methods.items(), strict=False):
        for marker, arm in zip(itertools.cycle(_MARKERS), {arm.label: arm for arm in of_method}.values(), strict=False):
            name = f"{method} {short[arm.variant]}: {arm.variant}" if arm.variant in short else arm.label
            styles[arm.label] = {"color": colour, "marker": marker, "label": name}
    return styles


def name_of(arm: Arm, style: Style) -> str:
    """Returns what an arm is called where there is little room; where all is kept there is no number."""
    keep = "" if arm.keep_asked in (None, 1.0) else f" {arm.keep_asked:g}"
    return style["label"].partition(":")[0] + keep


def limits(values: Sequence[float], *shown: float) -> Interval:
    """Returns the ends of an axis: what must be shown, and the values but for those far from all others."""
    low, high = min((*values, *shown)), max((*values, *shown))
    if len(values) > 3:
        first, _, third = statistics.quantiles(values, n=4, method="inclusive")
        reach = _FENCE * max(third - first, (max(shown) - min(shown)) / 4)
        low = max(low, min(first - reach, *shown))
        high = min(high, max(third + reach, *shown))
    margin = 0.06 * ((high - low) or abs(high) or 1)
    return low - margin, high + margin


def score_limits(arms: Sequence[Arm]) -> Interval:
    """Returns the ends of the score's axis, several standard errors of the test set on each side of dense."""
    scores = [arm.test.mean for arm in arms if arm.test.mean is not None] or [0.0]
    error = standard_error(arms) or 0.01 * abs(scores[0])
    return limits(scores, scores[0] - ERRORS * error, scores[0] + ERRORS * error)


def _row(axes: Sequence[Axes], arms: list[Arm], styles: dict[str, Style]) -> None:
    units = units_of(arms)
    by_bytes, by_keep, speed = axes[0], axes[1:-1], axes[-1]
    shares = [arm.saved_ratio.mean for arm in arms if arm.saved_ratio.mean is not None]
    by_bytes.set_xlim(min(0, limits(shares, 0, 1)[0]), limits(shares, 0, 1)[1])
    _scores(by_bytes, arms, styles, lambda arm: arm.saved_ratio)
    by_bytes.set_xlabel(BYTES)
    by_bytes.text(0.03, 0.96, BETTER, transform=by_bytes.transAxes, fontsize=8, color="#555555")
    for axis, unit in zip(by_keep, units, strict=False):
        axis.set_xlim(-0.03, 1.03)
        _scores(axis, [arm for arm in arms if arm.is_dense or arm.unit == unit], styles, _kept, arms)
        axis.set_xlabel(f"kept fraction, achieved\n(of {unit})")
    for axis in by_keep[len(units) :]:
        axis.set_axis_off()
    _step_time(speed, arms, styles)
    by_bytes.set_title(f"{heading(arms)}\n{_over(arms)}", loc="left", fontsize=10, fontweight="bold")


def _over(arms: list[Arm]) -> str:
    """How many seeds the points and bars are means over."""
    least, most = min(arm.test.n for arm in arms), max(arm.test.n for arm in arms)
    if most < 2:
        return "one seed: spread over seeds not known"
    return f"{most if least == most else f'{least} to {most}'} seeds; bars: sd"


def _kept(arm: Arm) -> Sample:
    x = arm.keep_asked if arm.keep_achieved is None else arm.keep_achieved
    return Sample(0) if x is None else Sample(1, x)


def _scores(
    axis: Axes,
    arms: Sequence[Arm],
    styles: dict[str, Style],
    x_of: Callable[[Arm], Sample],
    row: Sequence[Arm] | None = None,
) -> None:
    """Draws the score of each arm with its spread, and dense with the test set's error.

    Args:
        axis: the panel.
        arms: what is drawn.
        styles: of each series.
        x_of: where an arm stands.
        row: all arms of the row, whose scores share one axis.
    """
    ends = score_limits(row or arms)
    for label, style in styles.items():
        points = [(x, arm.test) for arm in arms if arm.label == label and (x := x_of(arm)).mean is not None]
        series(axis, [point for point in points if point[1].mean is not None], style, ends)
    dense_band(axis, arms)
    axis.set_ylim(*ends)
    axis.set_ylabel(f"test {arms[0].metric}")
    axis.grid(alpha=0.25)


def beyond(at: tuple[float, float], x: float, y: float) -> str:
    """Returns what is written at a point that is drawn at the end of an axis: where it would stand; else nothing."""
    far = [f"{value:.3g}" for drawn, value in zip(at, (x, y), strict=True) if drawn != value]
    return f" (at {', '.join(far)})" if far else ""


def series(axis: Axes, points: Sequence[tuple[Sample, Sample]], style: Style, ends: Interval) -> None:
    """Draws markers and error bars of one series; what is beyond an axis is drawn at its end, with its value.

    Args:
        axis: the panel, whose x axis is set.
        points: x and score of each.
        style: of the series.
        ends: of the score's axis.
    """
    if not points:
        return
    last = axis.get_xlim()[1]
    xs = [min(x.mean or 0.0, last) for x, _ in points]
    ys = [min(max(y.mean or 0.0, ends[0]), ends[1]) for _, y in points]
    spread = {"xerr": [x.sd or 0 for x, _ in points], "yerr": [y.sd or 0 for _, y in points]}
    axis.errorbar(xs, ys, **spread, **style, markersize=7, linewidth=0.8, elinewidth=1.2, capsize=3, clip_on=False)
    for x, at, (true_x, true_y) in zip(xs, ys, points, strict=True):
        if far := beyond((x, at), x=true_x.mean or 0.0, y=true_y.mean or 0.0):
            side = "right" if x == last else "left"
            axis.annotate(far, (x, at), xytext=(0, 7), textcoords="offset points", fontsize=8, ha=side)


def dense_band(axis: Axes, arms: Sequence[Arm]) -> None:
    """Draws the dense baseline: a line at its mean, a band of one standard error of the test set on each side."""
    dense = next((arm for arm in arms if arm.is_dense and arm.test.mean is not None), None)
    if dense is None or dense.test.mean is None:
        return
    axis.axhline(dense.test.mean, color=DENSE, linewidth=1.4, label="nosp (dense)", zorder=1)
    if error := standard_error([dense]):
        band = (max(dense.test.mean - error, 0), min(dense.test.mean + error, 1))  # of a share of rows
        axis.axhspan(*band, color=DENSE, alpha=0.12, linewidth=0, zorder=0, label="standard error of the test set")


def _step_time(axis: Axes, arms: list[Arm], styles: dict[str, Style]) -> None:
    timed = [arm for arm in arms if not arm.is_dense and arm.step_ratio.mean is not None]
    if not timed:
        axis.text(0.5, 0.5, "step time was not measured", ha="center", transform=axis.transAxes)
        axis.set_axis_off()
        return
    names = [name_of(arm, styles[arm.label]) for arm in timed]
    bars(axis, names, [arm.step_ratio for arm in timed], [styles[arm.label]["color"] for arm in timed])
    axis.set_xlabel("time of a training step, share of dense")


def bars(axis: Axes, names: Sequence[str], ratios: Sequence[Sample], colours: Sequence[str]) -> None:
    """Draws one bar per ratio to dense with its value; one far beyond the others ends at the axis' end."""
    means = [ratio.mean or 0.0 for ratio in ratios]
    end = limits(means, 0, 1.2)[1]
    errors = [ratio.sd or 0.0 for ratio in ratios]
    axis.barh(range(len(means)), means, xerr=errors if any(errors) else None, color=colours, height=0.7, capsize=3)
    for row, (mean, error) in enumerate(zip(means, errors, strict=True)):
        beyond = mean + error > end
        written = f" {mean:.2f}{' >' * beyond}"
        axis.text(end if beyond else mean + error, row, written, va="center", fontsize=9, bbox=_WHITE)
    axis.axvline(1.0, color=DENSE, linewidth=1.4, zorder=2)
    axis.set_yticks(range(len(means)), names, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(0, end)
