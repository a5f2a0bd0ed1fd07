"""Puts content, style and programs into one file that no browser lets reach out."""

import base64
import gzip
import hashlib
import html
import importlib.util
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from keepfrac.errors import UserError
from keepfrac.reporting.build import Report
from keepfrac.reporting.files import write_text
from keepfrac.reporting.page.content import content_of

ASSETS = Path(__file__).parent / "assets"
PROGRAMS = ("basics.js", "looks.js", "state.js", "fronts.js", "curves.js", "tables.js", "start.js")
_LICENCE = re.compile(r"/\*\*.*?\*/", re.DOTALL)


def write_page(report: Report, folder: Path, path: Path) -> Path:
    """Writes the page of a sweep and returns its path.

    Args:
        report: what the sweep says.
        folder: the sweep's folder.
        path: where the page goes.

    Raises:
        UserError: the file cannot be written, or plotly is not installed.
    """
    return write_text(path, page(content_of(report, folder), _plotly()))


def page(content: Mapping[str, Any], plotly: str) -> str:
    """Returns the page as text.

    plotly is packed, for it is nine tenths of the page; the programs unpack it in the browser. Scripts run by their
    hash alone: a script that came in by a value of the content would not run, escaped or not. Nothing may be loaded
    from anywhere. Styles may stand in the page because plotly sets them on what it draws.

    Args:
        content: of `content_of`.
        plotly: the source of plotly.js.
    """
    program = "\n".join(['"use strict";', "(() => {", *map(_asset, PROGRAMS), "})();"])
    policy = (
        f"default-src 'none'; script-src {_hash(program)} {_hash(plotly)}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    licence = _LICENCE.match(plotly)
    parts = {
        "policy": policy,
        "title": html.escape(str(content["name"])),
        "style": _asset("page.css"),
        "content": embedded(content),
        "licence": html.escape(licence.group()) if licence else "",
        "plotly": base64.b64encode(gzip.compress(plotly.encode(), 9, mtime=0)).decode(),
        "program": program,
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place.group(1)], _asset("page.html"))


def embedded(content: Mapping[str, Any]) -> str:
    """Returns JSON escaped for a script element: no value ends the element or begins a comment.

    Raises:
        ValueError: a number is not finite.
    """
    text = json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _plotly() -> str:
    """The source of plotly.js, from the package's files: to import the package takes longer than to read it."""
    found = importlib.util.find_spec("plotly")
    if found is None or not found.submodule_search_locations:
        raise UserError("The page needs plotly, which is not installed: make install, or leave it out: --no-page.")
    return (Path(found.submodule_search_locations[0]) / "package_data" / "plotly.min.js").read_text(encoding="utf-8")


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
