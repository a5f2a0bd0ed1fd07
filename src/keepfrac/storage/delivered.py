"""What a finished run delivered, by file, so that a cell whose model is gone or is another one is not taken for done.

A thousand cells are looked through in seconds: of a large file the hash takes its size and a few blocks, the first one
with the header of safetensors among them. Weights that were cut off, or are another model's, differ in them; a single
changed number may not.
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

FOLDERS = ("model", "export")
BLOCK, BLOCKS = 4096, 16


def fingerprint(path: Path) -> str:
    """Returns a hash of a file's size and, in equal distances from its first to its last, `BLOCKS` blocks at most.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest = hashlib.sha256(str(size).encode())
        last = max(0, size - BLOCK)
        for start in sorted({last * number // (BLOCKS - 1) for number in range(BLOCKS)}):
            file.seek(start)
            digest.update(file.read(BLOCK))
    return digest.hexdigest()[:16]


def account(folder: Path) -> dict[str, str]:
    """Returns the fingerprint of each file that a run has delivered, by its path within the run's folder."""
    paths = (path for name in FOLDERS for path in sorted((folder / name).rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): fingerprint(path) for path in paths}


def missing(folder: Path, files: Mapping[str, str]) -> str | None:
    """Returns in words the first file of an `account` that is gone, or is another one by now; None: all are there."""
    for name, expected in files.items():
        try:
            if fingerprint(folder / name) != expected:
                return f"{name} is not what the run delivered"
        except OSError:
            return f"{name} is gone"
    return None
