"""What a folder holds, as a hash."""

import hashlib
from pathlib import Path


def fingerprint_of_folder(folder: Path) -> str:
    """Returns a hash of the names and contents of all files in a folder."""
    digest = hashlib.sha256()
    for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]
