"""Columns that only some tables need: sizes where they differ, an adapter's figures, hindsight over several rates."""

from collections.abc import Callable, Iterable, Sequence

from keepfrac.reporting.arms import Arm

SPARSE = 0.98  # a share of nonzeros above it is of embeddings that were never trained
SMALLER = 0.99  # heads of tasks alone differ by less
HINDSIGHT = (
    "In brackets: the best of the rates on the test set itself, for comparison with tables that were chosen so; it"
    " flatters, and nothing here is decided by it."
)


def further(arms: Sequence[Arm]) -> list[dict[str, str]]:
    """Returns what stands beside the usual columns, a row per arm of one table; mostly nothing."""
    columns = {**_sizes(arms), **_adapters(arms), **(_TRIED if tried(arms) else {})}
    return [{name: show(arm) for name, show in columns.items()} for arm in arms]


Columns = dict[str, Callable[[Arm], str]]


def _sizes(arms: Sequence[Arm]) -> Columns:
    """Parameters and latency where models of several sizes are delivered, nonzeros where one has zeros."""
    sizes, columns = {arm.params for arm in arms}, {}
    if len(sizes) > 1:
        columns["params"] = lambda arm: _shown(arm.params, "{:.2f} M", 1e6)
    if any(arm.nonzeros and arm.params and arm.nonzeros < SPARSE * arm.params for arm in arms):
        columns["nonzeros"] = lambda arm: _shown(arm.nonzeros, "{:.2f} M", 1e6)
    known = [size for size in sizes if size]
    if known and min(known) < SMALLER * max(known):
        columns["latency to dense"] = lambda arm: _shown(arm.latency_ratio.mean, "{:.2f}x")
    return columns


def _adapters(arms: Sequence[Arm]) -> Columns:
    """What an adapter trains, and what merging it costs."""
    columns: Columns = {}
    if any(arm.trained_frac is not None for arm in arms):
        columns["trained"] = lambda arm: _shown(arm.trained_frac, "{:.2f} %", 0.01)
    if any(arm.unmerged.mean is not None for arm in arms):
        columns["before merging"] = lambda arm: _shown(arm.unmerged.mean, "{:.4f}")
    return columns


_TRIED: Columns = {
    "training": lambda arm: _shown(arm.train_seconds.mean, "{:.0f} s"),
    "[best on test]": lambda arm: _shown(arm.hindsight, f"[{{:.4f}}, of {arm.lrs_tried}]"),
}


def _shown(value: float | None, form: str, unit: float = 1) -> str:
    return "-" if value is None else form.format(value / unit)


def tried(arms: Iterable[Arm]) -> bool:
    """Whether several rates were tried for an arm, and validation chose one."""
    return any(arm.lrs_tried > 1 and arm.lr_chosen for arm in arms)
