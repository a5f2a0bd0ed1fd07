"""The report of some cells, made once and written to several places."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from keepfrac.errors import UserError
from keepfrac.reporting import tables
from keepfrac.reporting.arms import Arm, latest, summarise_cells
from keepfrac.reporting.cells import Cell, Problem, read_sweep
from keepfrac.reporting.files import write_text


@dataclass(frozen=True)
class Report:
    """What a sweep, or a records file, says.

    Attributes:
        name: the title.
        cells, problems: runs with and without a result.
        arms: the lines of the tables. notes: what must be known to read them.
    """

    name: str
    cells: tuple[Cell, ...]
    problems: tuple[Problem, ...]
    arms: tuple[Arm, ...]
    notes: tuple[str, ...]

    def table(self) -> str:
        """The tables and notes in markdown, as they stand in a README."""
        return tables.markdown(self.arms, self.notes)

    def markdown(self, picture: str | None) -> str:
        """The whole page: tables, picture, and the cells without a result."""
        parts = [f"# {tables.escape(self.name)}", self.table().strip() if self.arms else "No cell has finished yet."]
        if picture and self.arms:
            parts.append(f"![score against keep and saved bytes, step time]({picture})")
            parts.append("Bars are one sd over seeds; on the axis of keep the methods are set slightly apart.")
        if self.problems:
            rows = tables.problem_lines(self.problems)
            parts.append(f"## Cells without a result: {len(self.problems)}\n\n{tables.markdown_table(rows)}")
        return "\n\n".join(parts) + "\n"

    def show(self, console: Console) -> None:
        """Prints the tables on a terminal."""
        tables.on_terminal(console, self.arms, self.notes, self.problems)

    def write(self, folder: Path, stem: str = "report", picture: bool = True) -> list[Path]:
        """Writes <stem>.md, <stem>.csv and <stem>.png into a folder and returns their paths."""
        image = folder / f"{stem}.png"
        drawn = picture and bool(self.arms)
        written = [
            write_text(folder / f"{stem}.md", self.markdown(image.name if drawn else None)),
            write_text(folder / f"{stem}.csv", tables.table_csv(self.arms)),
        ]
        if drawn:
            from keepfrac.reporting.figure import draw

            written.append(draw(self.arms, image))
        return written

    def write_paths(self, sweep: Path, folder: Path, stem: str = "report") -> list[Path]:
        """Writes <stem>_paths.png, how runs held a constraint; returns its path, nothing where no run had one."""
        from keepfrac.reporting.paths import draw_paths

        drawn = draw_paths(sweep, folder / f"{stem}_paths.png")
        return [drawn] if drawn else []

    def write_page(self, sweep: Path, folder: Path, stem: str = "report") -> Path:
        """Writes <stem>.html, the page of the sweep whose folder this is the report of, and returns its path."""
        from keepfrac.reporting.page.html import write_page

        return write_page(self, sweep, folder / f"{stem}.html")


def build(name: str, cells: Sequence[Cell], problems: Sequence[Problem] = ()) -> Report:
    """Summarises cells."""
    arms = summarise_cells(cells)
    repeated = len(cells) - len(latest(cells))
    return Report(name, tuple(cells), tuple(problems), tuple(arms), tuple(tables.notes(arms, cells, repeated)))


def of_sweep(folder: Path) -> Report:
    """The report of a sweep's folder.

    Raises:
        UserError: the folder is not there, or holds no run.
    """
    folder = Path(folder)
    return build(folder.resolve().name, *read_sweep(folder))


def of_records(path: Path) -> Report:
    """The report of a tracked records file.

    Raises:
        UserError: not a records file, or without a row.
    """
    from keepfrac.reporting.records import read_records

    cells = read_records(Path(path))
    if not cells:
        raise UserError(f"{path} has no row: add some with python -m src.report FOLDER --record.")
    return build(Path(path).stem, cells)
