"""The files that a killed run goes on from; it imports nothing heavy, as it serves cells that are done already."""

from pathlib import Path

CHECKPOINT = "resume.ckpt"
BEST = "best.pt"
DAMAGED = "resume.damaged"


def remove_checkpoints(folder: Path) -> None:
    """Deletes the files that a finished run needs no more."""
    for name in (CHECKPOINT, BEST, DAMAGED):
        (folder / name).unlink(missing_ok=True)
