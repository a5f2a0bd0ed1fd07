"""Arms: cells that differ by seed alone, summarised over seeds, with the learning rate chosen on validation.

The test score never chooses anything. A difference to the dense baseline is paired by seed, each side at its own
chosen lr.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from keepfrac.reporting.cells import DENSE, FinishedRun
from keepfrac.reporting.statistics import Difference, Sample, paired, summarise

T = TypeVar("T")
Group = tuple[str, str, str, str]
_ALIKE = ("task", "model", "method", "direction", "keep_asked", "lr", "trained_frac", "params", "nonzeros", "test_rows")
_OVER_SEEDS = {
    "val": "val_score",
    "test": "test_score",
    "train_seconds": "train_seconds",
    "saved_bytes": "saved_bytes",
    "step_seconds": "step_seconds",
    "unmerged": "unmerged_score",
}
_TO_DENSE = {"saved_ratio": "saved_bytes", "step_ratio": "step_seconds", "latency_ratio": "latency_seconds"}


@dataclass(frozen=True)
class Arm:
    """One line of the table; its fields are the columns of report.csv.

    Attributes:
        task, model, setup, metric, direction: the group that may be compared; `setup` names the common keys that
            vary within task and model ("batch_size=64"), or is "".
        method, variant: `variant` names the method's own keys that vary ("unit=token"), or is "".
        keep_asked, keep_achieved, unit, of, fallbacks, pinned: what was kept, of what; achieved is a mean over seeds.
        lr, lrs_tried: the chosen rate, and how many were tried. lr_chosen is False where no validation score
            could choose.
        seeds: the seeds behind the numbers.
        val, test: score over seeds. difference: test score less the dense baseline's, paired by seed.
        hindsight: the best test score over the rates that were tried; it chooses nothing. None: one rate.
        train_seconds: of the fit, over seeds.
        saved_bytes, step_seconds: cost over seeds, with their ratio to dense measured in the same run.
        latency_ratio: of the delivered model's forward pass to the dense one's.
        trained_frac, unmerged: of an adapter the share it trains, and its test score before it is merged.
        identities: of the cells behind the numbers.
    """

    task: str
    model: str
    setup: str
    metric: str
    direction: str
    method: str
    variant: str
    keep_asked: float | None
    keep_achieved: float | None
    unit: str | None
    of: str | None
    fallbacks: int
    pinned: int
    lr: float | None
    lrs_tried: int
    lr_chosen: bool
    seeds: tuple[int, ...]
    val: Sample
    test: Sample
    difference: Difference | None
    hindsight: float | None
    train_seconds: Sample
    saved_bytes: Sample
    saved_ratio: Sample
    step_seconds: Sample
    step_ratio: Sample
    latency_ratio: Sample
    trained_frac: float | None
    unmerged: Sample
    params: int | None
    nonzeros: int | None
    test_rows: int | None
    identities: tuple[str, ...]

    @property
    def label(self) -> str:
        """Method and variant, as a series of a picture is called."""
        return f"{self.method} {self.variant}".strip()

    @property
    def is_dense(self) -> bool:
        """Whether this is the dense baseline."""
        return self.method == DENSE


def grouped(items: Iterable[T], key: Callable[[T], Hashable]) -> dict[Any, list[T]]:
    """Returns items by key, in order."""
    groups: dict[Any, list[T]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return dict(groups)


def group_of(arm: Arm) -> Group:
    """Returns what must be equal for two arms to share a table: task, model, setup, metric."""
    return arm.task, arm.model, arm.setup, arm.metric


def summarise_cells(cells: Sequence[FinishedRun]) -> list[Arm]:
    """Returns all arms of some cells, sorted: the dense baseline first, then by method, variant and keep."""
    setups = _names(cells, lambda cell: (cell.task, cell.model), _common)
    variants = _names(cells, lambda cell: (cell.task, cell.model, cell.method), _own)
    arms: list[Arm] = []
    for group in grouped(latest(cells), _base).values():
        families = list(grouped(group, tuned_together).values())
        baseline = [one for family in families if family[0].method == DENSE for one in _chosen(family) if one[1]]
        dense = _test_by_seed(baseline[0][0]) if len(baseline) == 1 else {}
        for family in families:
            for chosen, decided in _chosen(family):
                first = chosen[0].identity
                arms.append(_arm(chosen, family, decided, dense, setups[first], variants[first]))
    return sorted(arms, key=_order)


def told_apart(cells: Sequence[FinishedRun]) -> list[FinishedRun]:
    """Returns cells of which no two have equal settings and different data.

    Where a task's data was changed in place, its fingerprint becomes a setting, `data`; that of a cell whose version
    kept none is unknown.
    """
    known = {name: {cell.data for cell in same if cell.data} for name, same in grouped(cells, _task).items()}
    return [
        replace(cell, settings={**cell.settings, "data": (cell.data or "unknown")[:8]})
        if len(known[_task(cell)]) > 1
        else cell
        for cell in cells
    ]


def _task(cell: FinishedRun) -> str:
    own = {key: value for key, value in cell.settings.items() if key.startswith("task.")}
    return json.dumps([cell.task, own], sort_keys=True)


def latest(cells: Iterable[FinishedRun]) -> list[FinishedRun]:
    """Returns one cell for each arm, lr and seed (the one begun last), so that no seed counts twice."""
    by_date = sorted(cells, key=lambda cell: cell.date or "")
    return [same[-1] for same in grouped(by_date, lambda cell: (tuned_together(cell), cell.lr, cell.seed)).values()]


def tuned_together(cell: FinishedRun) -> tuple:
    """Returns what is equal in cells that differ by lr and seed alone."""
    return *_base(cell), cell.method, json.dumps(_own(cell), sort_keys=True), cell.keep_asked


def choose_lr(by_lr: Mapping[float | None, Sequence[FinishedRun]], direction: str) -> float | None:
    """Returns the lr of the best mean validation score, among those with the most seeds; the smaller of equals.

    Returns:
        None where no validation score is known.
    """
    scores = {lr: summarise(cell.val_score for cell in cells) for lr, cells in by_lr.items() if lr is not None}
    most = max((sample.n for sample in scores.values()), default=0)
    means = {lr: sample.mean for lr, sample in scores.items() if sample.n == most and sample.mean is not None}
    sign = 1 if direction == "min" else -1
    return min(means, key=lambda lr: (sign * means[lr], lr), default=None)


def differing(settings: Sequence[Mapping[str, object]]) -> list[str]:
    """Returns the keys in which some settings differ, less those that a group's name implies."""
    keys = sorted({key for one in settings for key in one})
    varying = [key for key in keys if len({json.dumps(one.get(key)) for one in settings}) > 1]
    return [key for key in varying if not _told_by_name(key, settings)]


def _told_by_name(key: str, settings: Sequence[Mapping[str, object]]) -> bool:
    """Whether a key differs only in that its group is absent elsewhere, which the group's name implies."""
    name = f"{key.rpartition('.')[0]}.name"
    values = {json.dumps(one[key]) for one in settings if key in one}
    return key != name and len(values) == 1 and all((key in one) == (name in one) for one in settings)


def _names(cells: Iterable[FinishedRun], within: Callable, settings_of: Callable) -> dict[str, str]:
    """By identity: "key=value" of those settings that are not the same in all cells with equal `within`."""
    names = {}
    for group in grouped(cells, within).values():
        settings = [settings_of(cell) for cell in group]
        keys = differing(settings)
        for cell, one in zip(group, settings, strict=True):
            shown = (f"{key.removeprefix('method.')}={one[key]}" for key in keys if key in one)
            names[cell.identity] = " ".join(shown)
    return names


def _chosen(family: list[FinishedRun]) -> list[tuple[list[FinishedRun], bool]]:
    """(cells of one lr, whether it was decided on): one of them, or each lr where nothing can choose."""
    by_lr = grouped(family, lambda cell: cell.lr)
    if len(by_lr) == 1:
        return [(family, True)]
    lr = choose_lr(by_lr, family[0].direction)
    return [(cells, False) for cells in by_lr.values()] if lr is None else [(by_lr[lr], True)]


def _hindsight(family: list[FinishedRun]) -> float | None:
    by_lr = grouped(family, lambda cell: cell.lr).values()
    means = [summarise(cell.test_score for cell in cells).mean for cells in by_lr]
    known = [mean for mean in means if mean is not None]
    best = min if family[0].direction == "min" else max
    return best(known) if len(means) > 1 and known else None


def _arm(
    cells: list[FinishedRun],
    family: list[FinishedRun],
    decided: bool,
    dense: Mapping[int, float],
    setup: str,
    variant: str,
) -> Arm:
    first, is_dense = cells[0], cells[0].method == DENSE
    values: dict[str, Any] = {name: getattr(first, name) for name in _ALIKE}
    values |= {name: summarise(getattr(cell, field) for cell in cells) for name, field in _OVER_SEEDS.items()}
    values |= {name: summarise(_ratio(cell, field) for cell in cells) for name, field in _TO_DENSE.items()}
    return Arm(
        **values,
        setup=setup,
        variant=variant,
        metric=first.best_metric,
        keep_achieved=summarise(cell.keep_achieved for cell in cells).mean,
        unit=None if is_dense else first.keep_unit,
        of=None if is_dense else first.keep_of,
        fallbacks=max(cell.fallbacks or 0 for cell in cells),
        pinned=max(cell.pinned or 0 for cell in cells),
        lrs_tried=len({cell.lr for cell in family}),
        lr_chosen=decided,
        seeds=tuple(sorted(cell.seed for cell in cells if cell.seed is not None)),
        difference=None if is_dense else paired(_test_by_seed(cells), dense),
        hindsight=_hindsight(family),
        identities=tuple(cell.identity for cell in cells),
    )


def _test_by_seed(cells: Iterable[FinishedRun]) -> dict[int, float]:
    return {cell.seed: cell.test_score for cell in cells if cell.seed is not None and cell.test_score is not None}


def _ratio(cell: FinishedRun, field: str) -> float | None:
    ours, dense = getattr(cell, field), getattr(cell, f"{field}_dense")
    return ours / dense if ours is not None and dense else None


def _common(cell: FinishedRun) -> dict[str, object]:
    return {key: value for key, value in cell.settings.items() if not key.startswith("method.")}


def _own(cell: FinishedRun) -> dict[str, object]:
    return {key: value for key, value in cell.settings.items() if key.startswith("method.")}


def _base(cell: FinishedRun) -> tuple:
    return cell.task, cell.model, cell.best_metric, json.dumps(_common(cell), sort_keys=True)


def _order(arm: Arm) -> tuple:
    return *group_of(arm), not arm.is_dense, arm.method, arm.variant, arm.keep_asked or 0.0, arm.lr or 0.0
