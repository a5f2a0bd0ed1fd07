"""The picture of `bench_backward`: saved memory against step time, both as a share of dense's, a panel per dtype."""

import itertools
from pathlib import Path

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
COLOURS = {"baselines": "#333333", "forward": "#0072B2", "late": "#D55E00", "adapters": "#CC79A7"}
COLOURS |= {"fallback": "#E69F00", "padded": "#009E73"}


def draw(rows: list[dict], path: Path) -> Path:
    """Writes the frontier as an SVG; the same rows give the same file."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams.update({"svg.hashsalt": "keepfrac", "axes.spines.top": False, "axes.spines.right": False})
    from matplotlib import pyplot as plt
    from matplotlib.ticker import ScalarFormatter

    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    styles = style_of(rows)
    figure, axes = plt.subplots(
        1, len(dtypes), figsize=(5.2 * len(dtypes) + 2.8, 5), squeeze=False, sharey=True, layout="constrained"
    )
    for axis, dtype in zip(axes[0], dtypes, strict=True):
        _panel(axis, [row for row in rows if row["dtype"] == dtype], styles)
        axis.set(title=dtype, xlabel="step time / dense", yscale="log")
        axis.yaxis.set_major_formatter(ScalarFormatter())
        axis.set_yticks([0.05, 0.1, 0.2, 0.5, 1])
        axis.minorticks_off()
    axes[0][0].set_ylabel("saved for the backward pass / dense")
    handles = {}
    for axis in axes[0]:
        found, labels = axis.get_legend_handles_labels()
        handles |= dict(zip(labels, found, strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside center right", frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return path


def series_of(row: dict) -> tuple[str, str] | None:
    """Group and label of the series that a row belongs to; None: it is not drawn."""
    if row["batch"] == "full":
        return row["group"], row["config"]
    if row["batch"] == "padded" and row["group"] == "late":
        return "padded", f"{row['config']}, {row['real']:.0%} real tokens"
    return None


def style_of(rows: list[dict]) -> dict[tuple[str, str], dict]:
    """Returns colour by group and marker by series."""
    markers = {group: itertools.cycle(MARKERS) for group in COLOURS}
    series = dict.fromkeys(key for row in rows if (key := series_of(row)) is not None)
    return {key: {"color": COLOURS[key[0]], "marker": next(markers[key[0]])} for key in series}


def _panel(axis, rows: list[dict], styles: dict[tuple[str, str], dict]) -> None:
    for key, style in styles.items():
        points = [row for row in rows if series_of(row) == key]
        x, y = ([row[name] for row in points] for name in ("time_ratio", "bytes_ratio"))
        axis.plot(x, y, label=key[1], lw=0.8, ms=5, **style)
        for row in points if len(points) > 1 else ():
            at = (row["time_ratio"], row["bytes_ratio"])
            axis.annotate(f"{row['keep_frac']:g}", at, xytext=(-3, 5), textcoords="offset points", fontsize=6)
    axis.axvline(1, color="#bbbbbb", lw=0.6, zorder=0)
    axis.axhline(1, color="#bbbbbb", lw=0.6, zorder=0)
