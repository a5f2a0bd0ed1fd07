"""Columns that only some tables need: parameters where they differ, hindsight where several rates were tried."""

from collections.abc import Iterable, Sequence

from src.report.arms import Arm

HINDSIGHT = (
    "In brackets: the best of the rates on the test set itself, for comparison with tables that were chosen so; it"
    " flatters, and nothing here is decided by it."
)


def further(arms: Sequence[Arm]) -> list[dict[str, str]]:
    """Returns what stands beside the usual columns, a row per arm of one table; mostly nothing."""
    rows: list[dict[str, str]] = [{} for _ in arms]
    if len({arm.params for arm in arms}) > 1:
        for row, arm in zip(rows, arms, strict=True):
            row["params"] = "-" if arm.params is None else f"{arm.params / 1e6:.2f} M"
    if tried(arms):
        for row, arm in zip(rows, arms, strict=True):
            row["training"] = "-" if arm.train_seconds.mean is None else f"{arm.train_seconds.mean:.0f} s"
            row["[best on test]"] = (
                "-" if arm.hindsight is None else f"[{arm.hindsight:.4f}, of {arm.lrs_tried}]"
            )
    return rows


def tried(arms: Iterable[Arm]) -> bool:
    """Whether several rates were tried for an arm, and validation chose one."""
    return any(arm.lrs_tried > 1 and arm.lr_chosen for arm in arms)
