"""What a run reports of a model with updates: how much learns, and its scores before it is merged."""

import torch
from torch import Tensor

from keepfrac.adapters.surgery import trainable
from keepfrac.training.finetune import FineTune


def trained(module: FineTune) -> dict[str, float]:
    """Returns how much learns: parameters, their share, bytes of the gradients and of the optimizer's state."""
    count, whole = trainable(module.net), sum(p.numel() for p in module.net.parameters())
    found = {"trained_params": count, "trained_frac": count / whole}
    optimizers = module._trainer.optimizers if module._trainer is not None else []
    states = [v for o in optimizers for state in o.state.values() for v in state.values() if isinstance(v, Tensor)]
    if states:
        found["gradient_bytes"] = sum(p.nbytes for p in module.parameters() if p.requires_grad)
        found["optimizer_bytes"] = sum(value.nbytes for value in states)
    return found


@torch.no_grad()
def scores_of(module: FineTune) -> dict[str, float]:
    """Returns the scores of the model as it stands, on validation and test, as the delivered one's are made.

    Empty where the run has no training: there is no trainer then that knows the precision.
    """
    trainer = module._trainer
    found: dict[str, float] = {}
    if trainer is None or not module.loop.total_steps:
        return {}
    module.eval()
    loaders = {"val": module.task.val_dataloader(), "test": module.task.test_dataloader()}
    for split, loader in loaders.items():
        module.start_scores(split)
        for index, batch in enumerate(loader):
            batch = module.task.to_device(batch, module.device)
            with trainer.precision_plugin.val_step_context():
                module.validation_step(batch, index)
        scores = module.val_metrics.compute()
        found |= {f"{split}/{name}": float(value) for name, value in scores.items()}
    module.start_scores("val")
    return found
