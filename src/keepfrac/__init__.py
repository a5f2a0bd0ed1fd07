"""keepfrac: cheap fine-tuning and small serving of transformers, with what each way of doing it costs.

In one's own training loop (Trainer, Accelerate, plain torch), without Hydra and Lightning:

    handle = keepfrac.save_less(model, keep_frac=0.3)        less is saved for the backward pass
    handle = keepfrac.sparsify(model, selector=0.3)          the same, of the sites that are named
    small = keepfrac.prune(model, batches, keep_frac=0.5)    fewer heads and neurons: a smaller model
    masked = keepfrac.mask_weights(model, keep_frac=0.2)     single weights are zero, and stay so
    updates = keepfrac.add_updates(model, rank=8)            LoRA, with sparse updates too
    loss = keepfrac.distillation_loss(model, teacher, batch) what a teacher adds to a loss
    figures = keepfrac.measure(model, batch)                 sizes, bytes and seconds of a step
    keepfrac.save(model, folder); keepfrac.load(folder)      cut, masked and packed models too

Make the optimizer after the model was changed. Nothing heavy is imported until a function is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keepfrac.distillation.loss import distillation_loss as distillation_loss
    from keepfrac.measurement.step import measure as measure
    from keepfrac.models.saving import load as load
    from keepfrac.models.saving import save as save
    from keepfrac.models.shrink import mask_weights as mask_weights
    from keepfrac.models.shrink import prune as prune
    from keepfrac.models.updates import add_updates as add_updates
    from keepfrac.sparse.convert import sparsify as sparsify
    from keepfrac.sparse.save_less import save_less as save_less

FUNCTIONS = {
    "save_less": "sparse.save_less",
    "sparsify": "sparse.convert",
    "prune": "models.shrink",
    "mask_weights": "models.shrink",
    "add_updates": "models.updates",
    "distillation_loss": "distillation.loss",
    "measure": "measurement.step",
    "save": "models.saving",
    "load": "models.saving",
}
"""Where each function is written."""
__all__ = [*FUNCTIONS]


def function(name: str) -> Any:
    """Returns one of the functions, and imports what it needs."""
    return getattr(import_module(f"keepfrac.{FUNCTIONS[name]}"), name)


def __getattr__(name: str) -> Any:
    if name == "prune":  # a package has this name, which is called as well
        return import_module("keepfrac.prune")
    if name in FUNCTIONS:
        return function(name)
    raise AttributeError(f"module 'keepfrac' has no attribute {name!r}")
