"""One picture of what was gained: score against bytes kept for the backward pass, and the time of a training step.

Scores are differences to dense, paired by seed: a point on the line lost nothing, and one left of 1 kept fewer bytes.
This module imports matplotlib, which takes a second.
"""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from keepfrac.errors import UserError
from keepfrac.reporting import figure
from keepfrac.reporting.arms import Arm, group_of, grouped
from keepfrac.reporting.statistics import Sample
from keepfrac.reporting.tables import heading, standard_error
from keepfrac.reporting.terminal import interval, scale

_SIZE = (10.5, 3.9)  # inches of one row
_MOST = 12  # arms, at most, whose names are drawn next to their points
_BESIDE = ((0, 9, "center", "bottom"), (0, -9, "center", "top"), (10, 0, "left", "center"), (-10, 0, "right", "center"))
_LINES = tuple(
    (x, y, side, "center") for y in (13, -13, 26, -26, 39, -39) for x, side in ((10, "left"), (-10, "right"))
)
Styles = dict[str, figure.Style]


def draw(arms: Sequence[Arm], path: Path) -> Path:
    """Writes the picture, a row per table that has a dense baseline.

    Raises:
        UserError: the file cannot be written, or no arm has both a difference to dense and its bytes.
    """
    placed = [arm for arm in arms if arm.difference and arm.saved_ratio.mean is not None]
    if not placed:
        raise UserError("no picture of what was gained: no arm has a difference to dense and its saved bytes.")
    groups, styles = grouped(placed, group_of), figure.style_of(placed)
    with mpl.rc_context(figure.LOOK):
        canvas = Figure(figsize=(_SIZE[0], _SIZE[1] * len(groups)), layout="constrained")
        grid = canvas.subplots(len(groups), 2, squeeze=False, width_ratios=(3, 2))
        for (scores, speed), (key, group) in zip(grid, groups.items(), strict=True):
            _speed(speed, group, styles)
            _scores(scores, group, styles, standard_error([arm for arm in arms if group_of(arm) == key]))
        return figure.save(canvas, path)


def _scores(axis: Axes, arms: Sequence[Arm], styles: Styles, error: float | None) -> None:
    unit, _ = scale(arms)
    noise = (error or 0.0) / unit
    xs = [arm.saved_ratio.mean or 0.0 for arm in arms]
    ys = [arm.difference.mean / unit for arm in arms if arm.difference]
    # a difference of a hundredth of the score is small where nothing says how large the noise is
    span = figure.ERRORS * (noise or 0.01 * abs(arms[0].test.mean or 0.0) / unit)
    low, high = figure.limits(ys, -span, span)
    end = figure.limits(xs, 0, 1.1)[1]
    axis.set(xlim=(-0.06, end), ylim=(low, high), xlabel=figure.BYTES.replace("\n", " "))
    axis.set_ylabel(f"{arms[0].metric}, difference to dense{' (points)' if unit < 1 else ''}")
    axis.set_title(f"{heading(arms)}: {_over(arms)}", loc="left", fontsize=10, fontweight="bold")
    axis.axhline(0, color=figure.DENSE, linewidth=1.2, zorder=1)
    if noise:
        axis.axhspan(-noise, noise, color=figure.DENSE, alpha=0.12, linewidth=0, zorder=0)
        axis.text(0.5, noise, "standard error of the test set", fontsize=8, ha="center", va="top", color="#555555")
    axis.text(0.03, 0.95, figure.BETTER, transform=axis.transAxes, fontsize=8, color="#555555")
    axis.plot(1, 0, "*", color=figure.DENSE, markersize=15, zorder=4)
    places = [(min(x, end), min(max(y, low), high)) for x, y in zip(xs, ys, strict=True)]
    for arm, y, (x, at) in zip(arms, ys, places, strict=True):
        bounds = interval(arm, None)
        spread = [[y - bounds[0] / unit], [bounds[1] / unit - y]] if bounds else None
        axis.errorbar(x, at, yerr=spread, **styles[arm.label], markersize=9, capsize=3, elinewidth=1.3, clip_on=False)
    axis.grid(alpha=0.25)
    if len(arms) <= _MOST:
        axis.figure.draw_without_rendering()  # or no text has a size yet
        beyond = [figure.beyond(at, x=x, y=y) for at, x, y in zip(places, xs, ys, strict=True)]
        names = [figure.name_of(arm, styles[arm.label]) + far for arm, far in zip(arms, beyond, strict=True)]
        _write_names(axis, [(1.0, 0.0), *places], ["dense", *names])


def _over(arms: Sequence[Arm]) -> str:
    most = max(arm.difference.n for arm in arms if arm.difference)
    return "one seed" if most < 2 else f"{most} seeds, bars: 95 % interval"


def _speed(axis: Axes, arms: Sequence[Arm], styles: Styles) -> None:
    timed = [arm for arm in arms if arm.step_ratio.mean is not None]
    ratios = [Sample(1, 1.0), *(arm.step_ratio for arm in timed)]
    colours = [figure.DENSE, *(styles[arm.label]["color"] for arm in timed)]
    figure.bars(axis, ["dense", *(figure.name_of(arm, styles[arm.label]) for arm in timed)], ratios, colours)
    axis.set_xlabel("time of a training step, share of dense")
    axis.set_title("shorter is faster", loc="left", fontsize=10)


def _overlaps(box: Bbox, taken: Sequence[Bbox], panel: Bbox) -> int:
    """Returns how much a text meets: what is there already, and the edges of the panel."""
    inside = panel.x0 <= box.x0 and box.x1 <= panel.x1 and panel.y0 <= box.y0 and box.y1 <= panel.y1
    return box.count_overlaps(taken) + (not inside)


def _write_names(axis: Axes, points: Sequence[tuple[float, float]], names: Sequence[str]) -> None:
    """Writes each name on that side of its point where it meets least of other names, points and the line of dense."""
    places = axis.transData.transform(points)
    taken = [Bbox.from_extents(0, places[0][1] - 1, axis.bbox.x1, places[0][1] + 1)]
    taken += [Bbox.from_bounds(x - 8, y - 8, 16, 16) for x, y in places]
    taken += [text.get_window_extent() for text in axis.texts]
    for point, name in zip(points, names, strict=True):
        tried = [
            axis.annotate(name, point, (dx, dy), textcoords="offset points", ha=side, va=above)
            for dx, dy, side, above in (*_BESIDE, *_LINES)
        ]
        best = min(tried, key=lambda text: _overlaps(text.get_window_extent(), taken, axis.bbox))
        taken.append(best.get_window_extent())
        for text in tried:
            if text is not best:
                text.remove()
