"""Where what can be made again is kept between runs."""

import os
from pathlib import Path


def user_cache() -> Path:
    """Returns the user's cache: $XDG_CACHE_HOME, else ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()


def cache_folder(name: str) -> Path:
    """Returns the folder of one kind of content within our part of the user's cache."""
    return user_cache() / "keepfrac" / name
