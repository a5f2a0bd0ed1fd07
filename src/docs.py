"""`python -m src.docs`: writes what is generated of the documents; see `keepfrac.reporting.documents`."""

import sys

from keepfrac.reporting.documents import ROOT, pages
from keepfrac.storage.commands import Parser


def main(arguments: list[str] | None = None) -> int:
    """Writes what has changed; returns the exit code."""
    Parser(prog="python -m src.docs", description="Writes what is generated of the documents.").parse_args(arguments)
    for path, text in pages().items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            sys.stdout.write(f"wrote {path.relative_to(ROOT)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
