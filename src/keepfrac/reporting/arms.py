"""Arms: cells that differ by seed alone, summarised over seeds, with the learning rate chosen on validation.

The test score never chooses anything. A difference to the dense baseline is paired by seed, each side at its own
chosen lr.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter

from keepfrac.reporting.cells import DENSE, Cell
from keepfrac.reporting.statistics import Difference, Sample, paired, summarise


@dataclass(frozen=True)
class Arm:
    """One line of the table.

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


Group = tuple[str, str, str, str]


def group_of(arm: Arm) -> Group:
    """What must be equal for two arms to stand in one table: task, model, setup, metric."""
    return arm.task, arm.model, arm.setup, arm.metric


def grouped(arms: Iterable[Arm]) -> dict[Group, list[Arm]]:
    """Arms by group, in order."""
    groups: dict[Group, list[Arm]] = defaultdict(list)
    for arm in arms:
        groups[group_of(arm)].append(arm)
    return dict(groups)


def summarise_cells(cells: Sequence[Cell]) -> list[Arm]:
    """All arms of some cells, sorted: the dense baseline first, then by method, variant and keep."""
    by_base: dict[tuple, list[Cell]] = defaultdict(list)
    for cell in latest(cells):
        by_base[_base(cell)].append(cell)
    setups = _names(cells, attrgetter("task", "model"), _common)
    variants = _names(cells, attrgetter("task", "model", "method"), _own)
    arms = [
        arm for members in by_base.values() for arm in _arms_of_base(members, setups[members[0].identity], variants)
    ]
    return sorted(arms, key=_order)


def latest(cells: Iterable[Cell]) -> list[Cell]:
    """One cell for each arm, lr and seed (the one begun last), so that no seed counts twice."""
    kept: dict[tuple, Cell] = {}
    for cell in sorted(cells, key=lambda cell: cell.date or ""):
        kept[_base(cell), _family(cell), cell.lr, cell.seed] = cell
    return list(kept.values())


def family_of(cell: Cell) -> tuple:
    """What is equal in cells that differ by lr and seed alone."""
    return *_base(cell), *_family(cell)


def choose_lr(by_lr: dict[float | None, list[Cell]], direction: str) -> float | None:
    """The lr of the best mean validation score, among those with the most seeds; the smaller of equals.

    Returns:
        None where no validation score is known.
    """
    scores = {lr: summarise(cell.val_score for cell in cells) for lr, cells in by_lr.items() if lr is not None}
    most = max((sample.n for sample in scores.values()), default=0)
    means = {lr: sample.mean for lr, sample in scores.items() if sample.n == most and sample.mean is not None}
    sign = 1 if direction == "min" else -1
    return min(means, key=lambda lr: (sign * means[lr], lr), default=None)


def _arms_of_base(members: list[Cell], setup: str, variants: dict[str, str]) -> list[Arm]:
    """The arms of cells with equal task, model and common keys, each less the dense one among them."""
    families: dict[tuple, list[Cell]] = defaultdict(list)
    for cell in members:
        families[_family(cell)].append(cell)
    chosen = [(*choice, family) for family in families.values() for choice in _choose(family)]
    baseline = [cells for cells, _, decided, _ in chosen if cells[0].method == DENSE and decided]
    dense = _test_by_seed(baseline[0]) if len(baseline) == 1 else {}
    return [
        _arm(cells, setup, variants[cells[0].identity], tried, decided, dense, _hindsight(family))
        for cells, tried, decided, family in chosen
    ]


def _choose(family: list[Cell]) -> list[tuple[list[Cell], int, bool]]:
    """(cells of one lr, number of lrs tried, whether validation chose); one per lr where nothing can choose."""
    by_lr: dict[float | None, list[Cell]] = defaultdict(list)
    for cell in family:
        by_lr[cell.lr].append(cell)
    if len(by_lr) == 1:
        return [(family, 1, True)]
    lr = choose_lr(by_lr, family[0].direction)
    if lr is None:
        return [(cells, len(by_lr), False) for cells in by_lr.values()]
    return [(by_lr[lr], len(by_lr), True)]


def _hindsight(family: list[Cell]) -> float | None:
    """The best mean test score over the rates that were tried; None where it was one rate."""
    scores = [summarise(c.test_score for c in family if c.lr == lr).mean for lr in {c.lr for c in family}]
    known = [score for score in scores if score is not None]
    best = min if family[0].direction == "min" else max
    return best(known) if len(scores) > 1 and known else None


def _arm(
    cells: list[Cell],
    setup: str,
    variant: str,
    tried: int,
    decided: bool,
    dense: dict[int, float],
    hindsight: float | None,
) -> Arm:
    first, is_dense = cells[0], cells[0].method == DENSE
    return Arm(
        **{key: getattr(first, key) for key in ("task", "model", "method", "direction", "keep_asked", "lr")},
        setup=setup,
        variant=variant,
        metric=first.best_metric,
        keep_achieved=summarise(cell.keep_achieved for cell in cells).mean,
        unit=None if is_dense else first.keep_unit,
        of=None if is_dense else first.keep_of,
        fallbacks=max(cell.fallbacks or 0 for cell in cells),
        pinned=max(cell.pinned or 0 for cell in cells),
        lrs_tried=tried,
        lr_chosen=decided,
        seeds=tuple(sorted(cell.seed for cell in cells if cell.seed is not None)),
        val=summarise(cell.val_score for cell in cells),
        test=summarise(cell.test_score for cell in cells),
        difference=None if is_dense else paired(_test_by_seed(cells), dense),
        hindsight=hindsight,
        train_seconds=summarise(cell.train_seconds for cell in cells),
        saved_bytes=summarise(cell.saved_bytes for cell in cells),
        saved_ratio=summarise(_ratio(cell.saved_bytes, cell.saved_bytes_dense) for cell in cells),
        step_seconds=summarise(cell.step_seconds for cell in cells),
        step_ratio=summarise(_ratio(cell.step_seconds, cell.step_seconds_dense) for cell in cells),
        latency_ratio=summarise(_ratio(cell.latency_seconds, cell.latency_seconds_dense) for cell in cells),
        trained_frac=first.trained_frac,
        unmerged=summarise(cell.unmerged_score for cell in cells),
        params=first.params,
        nonzeros=first.nonzeros,
        test_rows=first.test_rows,
        identities=tuple(cell.identity for cell in cells),
    )


def _test_by_seed(cells: Iterable[Cell]) -> dict[int, float]:
    return {cell.seed: cell.test_score for cell in cells if cell.seed is not None and cell.test_score is not None}


def _ratio(ours: float | None, dense: float | None) -> float | None:
    return ours / dense if ours is not None and dense else None


def _common(cell: Cell) -> dict[str, object]:
    """The settings that are not the method's own."""
    return {key: value for key, value in cell.settings.items() if not key.startswith("method.")}


def _own(cell: Cell) -> dict[str, object]:
    """The method's own settings."""
    return {key: value for key, value in cell.settings.items() if key.startswith("method.")}


def _base(cell: Cell) -> tuple:
    return cell.task, cell.model, cell.best_metric, json.dumps(_common(cell), sort_keys=True)


def _family(cell: Cell) -> tuple:
    return cell.method, json.dumps(_own(cell), sort_keys=True), cell.keep_asked


def _names(cells: Iterable[Cell], within: Callable, settings: Callable) -> dict[str, str]:
    """By identity: "key=value" of those settings that are not the same in all cells with equal `within`."""
    families: dict[tuple, list[Cell]] = defaultdict(list)
    for cell in cells:
        families[within(cell)].append(cell)
    names = {}
    for members in families.values():
        flat = [settings(cell) for cell in members]
        keys = sorted({key for one in flat for key in one})
        varying = [
            key for key in keys if len({json.dumps(one.get(key)) for one in flat}) > 1 and not _told_by_name(key, flat)
        ]
        for cell, one in zip(members, flat, strict=True):
            names[cell.identity] = " ".join(
                f"{key.removeprefix('method.')}={one[key]}" for key in varying if key in one
            )
    return names


def _told_by_name(key: str, flat: Sequence[dict[str, object]]) -> bool:
    """Whether a key differs only in that its group is absent elsewhere, which the group's name tells."""
    name = f"{key.rpartition('.')[0]}.name"
    values = {json.dumps(one[key]) for one in flat if key in one}
    return key != name and len(values) == 1 and all((key in one) == (name in one) for one in flat)


def _order(arm: Arm) -> tuple:
    return *group_of(arm), not arm.is_dense, arm.method, arm.variant, arm.keep_asked or 0.0, arm.lr or 0.0
