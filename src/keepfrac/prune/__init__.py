"""What is kept in the model: scores, schedules, masks, gates, structure, cost. Knows torch alone.

`keepfrac.prune` is this package, and when it is called the function `keepfrac.models.shrink.prune`.
"""

import inspect
import sys
from types import ModuleType
from typing import Any

import keepfrac


class _Callable(ModuleType):
    """A package that can be called."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return keepfrac.function("prune")(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(keepfrac.function("prune"))


sys.modules[__name__].__class__ = _Callable
