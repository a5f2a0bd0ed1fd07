"""From plain settings to objects: `_target_` is a full import path, the other keys are its settings."""

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from keepfrac.errors import UserError
from keepfrac.settings import Settings
from keepfrac.storage.foreign import told
from keepfrac.storage.moved import today


def build_target(path: str) -> Any:
    """Returns what stands under a full import path.

    Raises:
        UserError: there is nothing under this path.
    """
    module, _, name = today(path).rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:  # ValueError: a path without a module
        raise UserError(f"_target_={path}: {told(error)}") from error


def build(settings: dict, **more) -> Any:
    """Returns the object that `_target_` names, built from `more` and its `Settings`, made from the other keys.

    Raises:
        UserError: there is nothing under this path, a key is not one of its settings, or it takes other arguments.
    """
    target = build_target(settings["_target_"])
    if hasattr(target, "Settings"):
        given = {**more, "settings": target.Settings.of(settings)}
    else:
        given = {key: value for key, value in settings.items() if key != "_target_"} | more
    _check_arguments(settings["_target_"], target, given)
    return target(**given)


def _check_arguments(path: str, target: Any, given: dict) -> None:
    """Raises a UserError that names the class's own line where it does not take what it will be given."""
    try:
        inspect.signature(target).bind(**given)
    except TypeError as error:
        line = inspect.getsourcelines(target)[1]
        raise UserError(
            f"_target_={path}: {error}; it is built from {', '.join(given)} ({inspect.getsourcefile(target)}:{line})"
        ) from error


def check_settings(group: str, given: Mapping[str, Any]) -> None:
    """Holds the keys of a config group against what `_target_` takes.

    Raises:
        UserError: names the key, its value and what is allowed; or `_target_` names no class for this group.
    """
    if not isinstance(path := given.get("_target_"), str):
        raise UserError(f"{group}._target_={path}: must be the import path of a class")
    own = getattr(build_target(path), "Settings", None)
    if not (isinstance(own, type) and issubclass(own, Settings) and own.where == group):
        raise UserError(f"{group}._target_={path}: must be a class with Settings of the group {group}")
    own.of(given)
