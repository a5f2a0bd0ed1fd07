"""What the commands share: options are read, and mistakes said, in one line, without a secret in it."""

import argparse
import contextlib
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from keepfrac.settings import Kind
from keepfrac.storage.redact import redact_line

USAGE = 2
"""The exit code of a command line that cannot be read, as argparse has it."""


class Parser(argparse.ArgumentParser):
    """argparse's, whose complaint is one line: the whole usage would bury it."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"error: {redact_line(message)}; {self.prog} --help lists the options\n")


def complain(problem: object) -> int:
    """Says on stderr what went wrong; returns the exit code."""
    sys.stderr.write(f"error: {redact_line(str(problem))}\n")
    return 1


def option(kind: Kind) -> Callable[[str], Any]:
    """Returns what reads an option of a kind of numbers."""

    def read(text: str) -> Any:
        value = _number(text)
        if not kind.holds(value):
            raise argparse.ArgumentTypeError(f"{text}: must be {kind.says}")
        return value

    return read


def _number(text: str) -> float | None:
    for convert in (int, float):
        with contextlib.suppress(ValueError):
            return convert(text)
    return None
