"""The command line of the report."""

import argparse
import os
import sys
from pathlib import Path

from rich.console import Console

from keepfrac.errors import UserError
from keepfrac.reporting.build import Report, of_records, of_sweep
from keepfrac.reporting.readme import replace_table
from keepfrac.reporting.records import record, records_path

_NARROWEST = 152  # columns of a table that does not go to a terminal

_EXAMPLES = """examples:
  python -m src.report multirun/demo
      prints the table; leaves report.md, report.csv, report.png, report.html in multirun/demo
  python -m src.report multirun/demo --record
      and one row per finished cell in multirun/records/demo.csv
  python -m src.report --records multirun/records/demo.csv --readme README.md
      the same table made from the records, put between the lines
      <!-- table:demo --> and <!-- /table:demo --> of README.md
"""


def parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="python -m src.report",
        description="Tables and pictures of a sweep: means and spread over seeds, paired differences to the\n"
        "dense baseline, cost. Validation chooses the learning rate; the test score chooses nothing.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("folder", nargs="?", type=Path, metavar="FOLDER", help="a sweep's folder, multirun/<name>, or one run's")
    add("--records", type=Path, metavar="FILE", help="read this records file instead of a folder")
    add("--out", type=Path, metavar="DIR", help="where the report goes (default: FOLDER; FILE less .csv)")
    add("--no-picture", action="store_true", help="without report.png")
    add("--no-page", action="store_true", help="without report.html")
    add("--markdown", action="store_true", help="print the table as markdown")
    add("--record", nargs="?", const="", metavar="NAME", help="add finished cells to multirun/records/NAME.csv")
    add("--readme", type=Path, metavar="FILE", help="with --records: put the table between its markers")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code: 1, with one line on stderr, where the user must act."""
    options = parser().parse_args(argv)
    try:
        _run(options)
        sys.stdout.flush()
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at exit raises again
    return 0


def _run(options: argparse.Namespace) -> None:
    """Files first: a reader of the terminal who leaves early (`| head`) loses none."""
    _check(options)
    report = of_records(options.records) if options.records else of_sweep(options.folder)
    out = options.out or (options.records.with_suffix("") if options.records else options.folder)
    said = [f"wrote {path}" for path in report.write(out, picture=not options.no_picture)]
    if options.folder and not options.no_picture:
        said += [f"wrote {path}" for path in report.write_paths(options.folder, out)]
    if options.folder and not options.no_page:
        said.append(f"wrote {report.write_page(options.folder, out)}")
    if options.record is not None:
        said.append(_record(report, records_path(options.record or report.name)))
    if options.readme:
        changed = replace_table(options.readme, report.name, report.table())
        said.append(f"{'wrote the table into' if changed else 'nothing new for'} {options.readme}")
    _show(report, options.markdown)
    sys.stdout.write("".join(f"{line}\n" for line in said))


def _check(options: argparse.Namespace) -> None:
    if (options.folder is None) == (options.records is None):
        raise UserError(
            "Give one of FOLDER (a sweep's folder, before --record) and --records FILE; "
            "see python -m src.report --help."
        )
    if options.records and options.record is not None:
        raise UserError("--record reads a sweep's FOLDER; it cannot be used with --records.")
    if options.readme and not options.records:
        raise UserError("--readme takes its table from records: add --records multirun/records/NAME.csv.")


def _show(report: Report, as_markdown: bool) -> None:
    if as_markdown:
        sys.stdout.write(report.table())
        return
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, _NARROWEST)
    report.show(console)


def _record(report: Report, path: Path) -> str:
    if not report.cells:
        raise UserError(f"{report.name} has no finished cell to record.")
    added, replaced = record(report.cells, path)
    return f"recorded {added} new cells and replaced {replaced} in {path}"


if __name__ == "__main__":
    sys.exit(main())
