"""The report of some cells: their arms, the notes to read them by, and both as text."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from keepfrac.errors import UserError
from keepfrac.reporting import tables
from keepfrac.reporting.arms import Arm, latest, summarise_cells, told_apart
from keepfrac.reporting.cells import FinishedRun, Problem, read_sweep
from keepfrac.reporting.files import write_text
from keepfrac.reporting.records import read_rows


@dataclass(frozen=True)
class Report:
    """What a sweep, or a records file, says.

    Attributes:
        name: the title.
        cells, problems: runs with and without a result.
        arms: the lines of the tables.
        notes: what must be known to read them.
    """

    name: str
    cells: tuple[FinishedRun, ...]
    problems: tuple[Problem, ...]
    arms: tuple[Arm, ...]
    notes: tuple[str, ...]

    def table(self) -> str:
        """Returns the tables and notes in markdown."""
        return tables.markdown(self.arms, self.notes)

    def markdown(self, picture: str | None) -> str:
        """Returns the whole page: tables, picture, and the cells without a result."""
        parts = [f"# {tables.escape(self.name)}", self.table().strip() if self.arms else "No cell has finished yet."]
        if picture and self.arms:
            parts.append(f"![score against bytes kept for the backward pass and against keep, step time]({picture})")
            parts.append("Bars are one sd over seeds; the grey band is the test set's standard error around dense.")
        if self.problems:
            rows = tables.problem_lines(self.problems)
            parts.append(f"## Cells without a result: {len(self.problems)}\n\n{tables.markdown_table(rows)}")
        return "\n\n".join(parts) + "\n"

    def write(self, folder: Path, picture: str | None = None) -> list[Path]:
        """Writes report.md, with a link to a picture of that name, and report.csv; returns their paths."""
        return [
            write_text(folder / "report.md", self.markdown(picture)),
            write_text(folder / "report.csv", tables.table_csv(self.arms)),
        ]


def build(name: str, cells: Sequence[FinishedRun], problems: Sequence[Problem] = ()) -> Report:
    """Summarises cells."""
    cells = told_apart(cells)
    arms = summarise_cells(cells)
    repeated = len(cells) - len(latest(cells))
    return Report(name, tuple(cells), tuple(problems), tuple(arms), tuple(tables.notes(arms, cells, repeated)))


def of_sweep(folder: Path) -> Report:
    """Returns the report of a sweep's folder.

    Raises:
        UserError: the folder is not there, or holds no run.
    """
    folder = Path(folder)
    return build(folder.resolve().name, *read_sweep(folder))


def of_records(path: Path) -> Report:
    """Returns the report of a tracked records file.

    Raises:
        UserError: not a records file, or without a row.
    """
    cells, problems = read_rows(Path(path))
    if not cells and not problems:
        raise UserError(f"{path} has no row: add some with python -m src.report FOLDER --record.")
    return build(Path(path).stem, cells, problems)
