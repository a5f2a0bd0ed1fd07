"""`python -m src.measure FOLDER`: sizes of a delivered model, whole and by part.

--sites: what a sparse backward pass saves, place by place. --latency: times relative to the dense original, kept in
FOLDER/latency.json.

FOLDER is a run's folder, or any Hugging Face folder (without --sites).
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from keepfrac.errors import UserError
from keepfrac.settings import whole
from keepfrac.storage import hub
from keepfrac.storage.commands import Parser, complain, option


def parser() -> argparse.ArgumentParser:
    """Returns what reads the command line."""
    found = Parser(prog="python -m src.measure", description=__doc__)
    found.add_argument("folder", type=Path, help="a run's folder, or a Hugging Face folder")
    what = found.add_mutually_exclusive_group()
    what.add_argument("--sites", action="store_true", help="bytes and gradient error of each sparse place")
    what.add_argument("--latency", action="store_true", help="p50, p95, throughput, peak memory beside dense")
    found.add_argument("--threads", type=option(whole(1, 1024)), help="with --latency: of the CPU (1)")
    found.add_argument("--repeats", type=option(whole(1, 10**6)), help="with --latency: rounds at each place (50)")
    found.add_argument("--json", action="store_true", help="print one JSON object")
    return found


def _write_line(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _measured(chosen: argparse.Namespace) -> tuple[dict, Callable[[dict], None]]:
    """Measures; returns the figures, and what prints them for people."""
    from keepfrac.measurement import folder

    if chosen.latency:
        quiet = chosen.json
        log_line = (lambda line: None) if quiet else _write_line
        found = folder.latencies(chosen.folder, chosen.threads or 1, chosen.repeats or 50, log_line)
        return found, lambda found: _write_line(json.dumps({key: one for key, one in found.items() if key != "rows"}))
    if chosen.sites:
        from keepfrac.run import sites

        return sites.sites(chosen.folder), lambda found: sites.show(found, Console())
    return folder.sizes(chosen.folder), lambda found: folder.show(found, Console())


def main(arguments: list[str]) -> int:
    """Measures and prints; returns the exit code."""
    options = parser()
    chosen = options.parse_args(arguments)
    for key in ("threads", "repeats"):
        if getattr(chosen, key) and not chosen.latency:
            options.error(f"--{key} {getattr(chosen, key)}: without effect but with --latency")
    hub.resolve_hub()
    try:
        found, show = _measured(chosen)
    except UserError as error:
        return complain(error)
    if chosen.json:
        _write_line(json.dumps(found))
    else:
        show(found)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
