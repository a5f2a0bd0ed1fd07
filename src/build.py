"""From plain settings to objects: `_target_` is a full import path, the other keys are the constructor's arguments."""

import importlib
from typing import Any

from src.errors import UserError


def build(settings: dict, **more) -> Any:
    """Returns the object that `_target_` names, built from the other keys and `more`.

    Raises:
        UserError: there is nothing under this path.
    """
    module, _, name = settings["_target_"].rpartition(".")
    try:
        target = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"_target_={settings['_target_']}: {error}") from error
    return target(**{key: value for key, value in settings.items() if key != "_target_"}, **more)
