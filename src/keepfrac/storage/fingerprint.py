"""What a folder holds, and what code a process runs, as a hash."""

import functools
import hashlib
import sys
from collections.abc import Iterable
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
BESIDE = ("plugins", "sweep", "tracking", "reporting")
"""Packages that start runs and show them, and change no result."""
CODE = {".py", ".cpp", ".h"}


def fingerprint_of_folder(folder: Path) -> str:
    """Returns a hash of the names and contents of all files in a folder."""
    folder = Path(folder)
    return _hash(folder, (path for path in folder.rglob("*") if path.is_file()))


@functools.cache
def fingerprint_of_code(*modules: str) -> str:
    """Returns a hash of the code that can change a result; this package's, kernels included, is read once a process.

    Args:
        modules: those of a user's own, which stand outside this package and are imported already.
    """
    own = [_hash(Path(file).parent, [Path(file)]) for name in modules if (file := sys.modules[name].__file__)]
    return hashlib.sha256(" ".join([_of_package(), *own]).encode()).hexdigest()[:16]


@functools.cache
def _of_package() -> str:
    files = (path for path in PACKAGE.rglob("*") if path.suffix in CODE)
    return _hash(PACKAGE, (path for path in files if path.relative_to(PACKAGE).parts[0] not in BESIDE))


def _hash(folder: Path, files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]
