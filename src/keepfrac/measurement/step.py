"""`measure`: the sizes of a model, and what one step of it costs, in any training loop."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from keepfrac.errors import UserError
from keepfrac.measurement.costs import macs, nonzeros, parameters, saved_bytes, step_seconds
from keepfrac.measurement.peak import peak_bytes
from keepfrac.tensors.clock import interleaved_seconds


class Figures(TypedDict):
    """What `measure` finds; of a step: None where nothing of the model is trained."""

    params: int
    nonzeros: int
    macs: int
    forward_seconds: float
    saved_bytes: int | None
    peak_bytes: int | None
    step_seconds: float | None


def measure(model: nn.Module, batch: Mapping[str, Tensor], times: int = 3) -> Figures:
    """Measures a model as it stands: stock, or with what saves less, updates or masks.

    Args:
        model: a Transformers model; its mode, its gradients and the random state are as before afterwards.
        batch: inputs by name, tensors (rows, length); moved to the model's device. Without `labels` the loss of the
            step is the sum of the first output.
        times: of which the median counts, >= 1, after one that does not.

    Returns:
        params and nonzeros, parameters (tied ones once); macs, multiply-accumulates of one sentence of the batch's
        length; forward_seconds of the batch in eval mode; and of one training step, forward and backward: saved_bytes,
        which autograd holds between the two; peak_bytes, beyond what was there before; step_seconds.

    Raises:
        UserError: no repetitions, or a batch without input_ids.
    """
    if times < 1 or "input_ids" not in batch:
        raise UserError(f"measure: times={times} must be >= 1, and the batch must have input_ids, not {list(batch)}")
    device, training = next(model.parameters()).device, model.training
    there = {name: tensor.to(device) for name, tensor in batch.items()}
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            return _figures(model, there, times, device)
    finally:
        model.train(training)
        for name, parameter in model.named_parameters():
            parameter.grad = gradients[name]


def _figures(model: nn.Module, batch: dict[str, Tensor], times: int, device: torch.device) -> Figures:
    found: Any = {"params": parameters(model), "nonzeros": nonzeros(model)}
    found |= {
        "macs": macs(model, batch["input_ids"].shape[1]),
        "forward_seconds": _forward(model, batch, times, device),
    }
    found |= dict.fromkeys(("saved_bytes", "peak_bytes", "step_seconds"))
    if any(parameter.requires_grad for parameter in model.parameters()):
        model.train()

        def step() -> Tensor:
            outputs = model(**batch)
            loss = getattr(outputs, "loss", None)
            return outputs[0].float().sum() if loss is None else loss

        found["saved_bytes"] = saved_bytes(model, step)
        found["peak_bytes"] = peak_bytes(lambda: step().backward(), device)
        found["step_seconds"] = step_seconds({"own": step}, times, device)["own"]
    return found


@torch.no_grad()
def _forward(model: nn.Module, batch: dict[str, Tensor], times: int, device: torch.device) -> float:
    model.eval()
    (seconds,) = interleaved_seconds({"own": lambda: model(**batch)}, times, 1, device).values()
    return statistics.median(seconds)
