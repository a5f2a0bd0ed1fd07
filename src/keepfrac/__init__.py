"""keepfrac: cheap fine-tuning and small serving of transformers, with what each way of doing it costs.

In one's own training loop:

    handle = keepfrac.save_less(model, keep_frac=0.3)   see `keepfrac.sparse.save_less`
    ...                                                 train as ever
    handle.restore()

Nothing heavy is imported until a function is used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keepfrac.sparse.save_less import save_less as save_less

__all__ = ["save_less"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from importlib import import_module

        return getattr(import_module(f"keepfrac.sparse.{name}"), name)
    raise AttributeError(f"module 'keepfrac' has no attribute {name!r}")
