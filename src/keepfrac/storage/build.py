"""From plain settings to objects: `_target_` is a full import path, the other keys are the constructor's arguments."""

import importlib
from typing import Any

from keepfrac.errors import UserError
from keepfrac.storage.moved import today


def build_target(path: str) -> Any:
    """Returns what stands under a full import path.

    Raises:
        UserError: there is nothing under this path.
    """
    module, _, name = today(path).rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"_target_={path}: {error}") from error


def build(settings: dict, **more) -> Any:
    """Returns the object that `_target_` names, built from the other keys and `more`.

    Raises:
        UserError: there is nothing under this path.
    """
    target = build_target(settings["_target_"])
    return target(**{key: value for key, value in settings.items() if key != "_target_"}, **more)
