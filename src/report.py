"""The command line of the report: it ties tables, pictures, page and records together."""

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from keepfrac.errors import UserError
from keepfrac.reporting import terminal
from keepfrac.reporting.build import Report, of_records, of_sweep
from keepfrac.reporting.page.html import write_page
from keepfrac.reporting.records import add_records, records_path
from keepfrac.reporting.results import replace_table
from keepfrac.storage.commands import Parser, complain


def parser() -> argparse.ArgumentParser:
    """Returns the options."""
    parser = Parser(
        prog="python -m src.report",
        description="Prints the table of a sweep (spread over seeds, paired differences to dense, cost) and leaves "
        "report.md, report.csv, report.png and report.html in its folder.",
    )
    add = parser.add_argument
    add("folder", nargs="?", type=Path, metavar="FOLDER", help="a sweep's folder, multirun/<name>, or one run's")
    add("--records", type=Path, metavar="FILE", help="read this records file instead of a folder")
    add("--out", type=Path, metavar="DIR", help="where the report goes (default: FOLDER; FILE less .csv)")
    add("--no-picture", action="store_true", help="without report.png")
    add("--no-page", action="store_true", help="without report.html")
    add("--markdown", action="store_true", help="print the table as markdown")
    add("--record", nargs="?", const="", metavar="NAME", help="add finished cells to multirun/records/NAME.csv")
    add("--readme", type=Path, metavar="FILE", help="with --records: put the table between <!-- table:NAME --> lines")
    add("--front", type=Path, metavar="FILE", help="one picture (.svg, .png): score against bytes kept, step time")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code: 1, with one line on stderr, where the user must act."""
    options = parser().parse_args(argv)
    try:
        _check(options)
        report = of_records(options.records) if options.records else of_sweep(options.folder)
        written = list(_write(report, options))  # files first: a reader who leaves early (`| head`) loses none
        if options.markdown:
            sys.stdout.write(report.table())
        else:
            terminal.show(terminal.console(), report.arms, report.notes, report.problems)
        sys.stdout.write("".join(f"{line}\n" for line in written))
        sys.stdout.flush()
    except UserError as error:
        return complain(error)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at exit raises again
    return 0


def _check(options: argparse.Namespace) -> None:
    if (options.folder is None) == (options.records is None):
        raise UserError("Give one of FOLDER (a sweep's folder, before --record) and --records FILE; see --help.")
    if options.records and options.record is not None:
        raise UserError("--record reads a sweep's FOLDER; it cannot be used with --records.")
    if options.record:
        records_path(options.record)  # before anything is written
    if options.readme and not options.records:
        raise UserError("--readme takes its table from records: add --records multirun/records/NAME.csv.")


def _write(report: Report, options: argparse.Namespace) -> Iterator[str]:
    """Writes what was asked for; yields a line on each."""
    out = options.out or (options.records.with_suffix("") if options.records else options.folder)
    written = report.write(out, None if options.no_picture else "report.png")
    if options.front or not options.no_picture:
        written += _draw(report, options, out)
    if options.folder and not options.no_page:
        written.append(write_page(report, options.folder, out / "report.html"))
    yield from (f"wrote {path}" for path in written)
    if options.record is not None:
        added, replaced = add_records(report.cells, path := records_path(options.record or report.name))
        yield f"recorded {added} new cells and replaced {replaced} in {path}"
    if options.readme:
        changed = replace_table(options.readme, report.name, report.table())
        yield f"{'wrote the table into' if changed else 'nothing new for'} {options.readme}"


def _draw(report: Report, options: argparse.Namespace, out: Path) -> Iterator[Path]:
    from keepfrac.reporting import figure, front, paths  # late: matplotlib takes longer to import than a table to make

    if report.arms and not options.no_picture:
        yield figure.draw(report.arms, out / "report.png")
    if options.folder and not options.no_picture and (path := paths.draw_paths(options.folder, out)):
        yield path
    if options.front:
        yield front.draw(report.arms, options.front)


if __name__ == "__main__":
    sys.exit(main())
