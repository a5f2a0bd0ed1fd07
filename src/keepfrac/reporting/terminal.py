"""Arms on a terminal of 100 characters: one sentence that says what was gained, and at most eight columns below it."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from keepfrac.reporting.arms import Arm, group_of, grouped
from keepfrac.reporting.cells import Problem
from keepfrac.reporting.tables import (
    DIFFERENCES,
    LEFT,
    MEANS,
    heading,
    letters,
    number,
    of_several_sizes,
    problem_lines,
    standard_error,
    what,
)

_NARROWEST = 100  # columns of a table that does not go to a terminal
_ALIKE = 1.05  # a cost within 5 % of dense's is neither gained nor paid
_TO_DENSE = {"saved bytes": "saved_ratio", "step time": "step_ratio"}
_READING = (
    "+-: one sd over n seeds. [ ]: the 95 % interval over seeds or, of one seed, two standard errors of the test set. "
    "saved, step, params: ratios to dense, saved being the bytes kept for the backward pass. All columns: report.md."
)


def console() -> Console:
    """Returns the terminal, or what takes its place, at least as wide as the tables."""
    found = Console()
    if not found.is_terminal:
        found.width = max(found.width, _NARROWEST)
    return found


def show(to: Console, arms: Sequence[Arm], remarks: Sequence[str], problems: Sequence[Problem]) -> None:
    """Prints the tables, the notes, and the cells without a result."""
    for group in grouped(arms, group_of).values():
        to.print(Text(heading(group), style="bold"))
        to.print(Text(gain(group)), _table(lines(group)))
        for words, same in grouped((arm for arm in group if what(arm) != "-"), what).items():
            methods = ", ".join(dict.fromkeys(arm.method for arm in same))
            to.print(Text(f"- kept by {methods}: {words}", style="dim"))
        for variant, letter in letters(group).items():
            to.print(Text(f"- {letter}: {variant}", style="dim"))
    for remark in [_READING] * bool(arms) + [one for one in remarks if one not in (MEANS, DIFFERENCES)]:
        to.print(Text(f"- {remark}", style="dim"))
    if problems:
        to.print(Text(f"Cells without a result: {len(problems)}", style="bold"), _table(problem_lines(problems)))


def gain(arms: Sequence[Arm]) -> str:
    """Returns what was gained: of the arms that cost more than dense in nothing, the cheapest that is not worse."""
    error = standard_error(arms)
    compared = [(arm, verdict(arm, error), spent) for arm in arms if arm.difference and (spent := costs(arm, arms))]
    if not compared:
        return "What was gained is not known: it takes a dense baseline (nosp) and measured costs."
    cheap = [one for one in compared if max(one[2].values()) <= _ALIKE and min(one[2].values()) * _ALIKE < 1]
    if not cheap:
        return "Nothing was gained: no arm beside dense costs less in all that was measured."
    arm, found, spent = min(cheap, key=lambda one: (one[1] == "worse", sum(one[2].values()) / len(one[2])))
    *most, last = (f"{ratio:.2f} of its {name}" for name, ratio in spent.items() if ratio * _ALIKE < 1)
    less = " and ".join([", ".join(most), last] if most else [last]).replace("its", "dense's", 1)
    words = {"within noise": "not distinguishable", "one seed": "of unknown noise"}.get(found, found)
    return f"{arm.label} at {number(arm.keep_asked, '{:g}')}: {less}, {_change(arm, arms)}: {words} at n={arm.test.n}."


def costs(arm: Arm, arms: Sequence[Arm]) -> dict[str, float]:
    """Returns what an arm costs as ratios to dense, as far as that was measured."""
    dense = next((one.params for one in arms if one.is_dense), None)
    found = {name: getattr(arm, field).mean for name, field in _TO_DENSE.items()}
    if of_several_sizes(arms) and dense and arm.params:
        found |= {"latency": arm.latency_ratio.mean, "parameters": arm.params / dense}
    return {name: ratio for name, ratio in found.items() if ratio is not None}


def interval(arm: Arm, error: float | None) -> tuple[float, float] | None:
    """Returns where the difference to dense may lie; None where nothing says how large the noise is.

    Args:
        arm: its difference has an interval of its own where there are several seeds.
        error: standard error of the test set, twice of which stands on each side for one seed.
    """
    difference = arm.difference
    if difference is None:
        return None
    if difference.low is not None and difference.high is not None:
        return difference.low, difference.high
    return None if error is None else (difference.mean - 2 * error, difference.mean + 2 * error)


def verdict(arm: Arm, error: float | None) -> str:
    """Returns "better", "worse", "within noise", or "one seed" where nothing says how large the noise is."""
    found = interval(arm, error)
    if found is None:
        return "one seed" if arm.difference else "-"
    if found[0] <= 0 <= found[1]:
        return "within noise"
    return "better" if (found[0] > 0) == (arm.direction != "min") else "worse"


def lines(arms: Sequence[Arm]) -> list[dict[str, str]]:
    """Returns one row of text per arm: column -> cell. Scores between 0 and 1 are shown as per cent."""
    error, (unit, digits), short = standard_error(arms), scale(arms), letters(arms)
    rows = []
    for arm in arms:
        spent = costs(arm, arms)
        row = {
            "method": f"{arm.method} {short.get(arm.variant, arm.variant)}".strip(),
            "kept": _kept(arm),
            f"{arm.metric}{' %' * (unit < 1)} (n)": _score(arm, unit, digits),
            "to dense": _difference(arm, error, unit, digits),
            "saved": number(spent.get("saved bytes"), "{:.2f}"),
            "step": number(spent.get("step time"), "{:.2f}"),
            "params": number(spent.get("parameters"), "{:.2f}"),
            "verdict": verdict(arm, error),
        }
        rows.append(row if of_several_sizes(arms) else {key: text for key, text in row.items() if key != "params"})
    return rows


def scale(arms: Sequence[Arm]) -> tuple[float, int]:
    """Returns the unit that scores are shown in, and their decimals: points where all are between 0 and 1."""
    scores = [arm.test.mean for arm in arms if arm.test.mean is not None]
    in_points = arms[0].direction != "min" and all(0 <= score <= 1 for score in scores)
    return (0.01, 1) if in_points else (1, 4)


def _kept(arm: Arm) -> str:
    asked, achieved = number(arm.keep_asked, "{:g}"), number(arm.keep_achieved, "{:.2g}")
    return asked if achieved in (asked, "-") else f"{asked} -> {achieved}"


def _score(arm: Arm, unit: float, digits: int) -> str:
    spread = "" if arm.test.sd is None else f" +- {arm.test.sd / unit:.{digits}f}"
    return f"{number(arm.test.mean, f'{{:.{digits}f}}', unit)}{spread} ({arm.test.n})"


def _difference(arm: Arm, error: float | None, unit: float, digits: int) -> str:
    if arm.difference is None:
        return "-"
    mean, *bounds = (f"{one / unit:+.{digits}f}" for one in (arm.difference.mean, *(interval(arm, error) or ())))
    return f"{mean} [{', '.join(bounds)}]" if bounds else mean


def _change(arm: Arm, arms: Sequence[Arm]) -> str:
    """The difference to dense, its interval and their unit."""
    unit, digits = scale(arms)
    return f"{_difference(arm, standard_error(arms), unit, digits)} {'points' if unit < 1 else arm.metric}"


def _table(rows: Sequence[dict[str, str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in rows[0]:
        words = column in LEFT
        table.add_column(Text(column), justify="left" if words else "right", overflow="fold", no_wrap=not words)
    for row in rows:
        table.add_row(*(Text(value) for value in row.values()))
    return table
