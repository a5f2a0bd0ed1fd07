"""`distillation_loss`: what a teacher adds to the loss of a step, in any training loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from keepfrac.distillation.distiller import Distiller
from keepfrac.distillation.recipe import Recipe
from keepfrac.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Distilled(NamedTuple):
    """What one step gives.

    Attributes:
        loss: the weighted terms, summed: a scalar with a gradient. The model's own loss is not in it.
        outputs: the student's, of the same forward pass; `outputs.loss` where the batch had labels.
        terms: by name: logits, hidden, attention; detached.
    """

    loss: Tensor
    outputs: Any
    terms: dict[str, Tensor]


def distillation_loss(
    model: PreTrainedModel,
    teacher: PreTrainedModel,
    batch: Mapping[str, Tensor],
    *,
    logits: float = 1.0,
    hidden: float = 0.0,
    attention: float = 0.0,
    temperature: float = 2.0,
    layer_map: str | Sequence[int] = "uniform",
) -> Distilled:
    """Runs student and teacher on a batch, and compares them.

        found = keepfrac.distillation_loss(model, teacher, batch, hidden=1.0)
        (found.outputs.loss + found.loss).backward()

    Args:
        model: the student, as it is trained; it may be cut on the way.
        teacher: of the same vocabulary and outputs; it is put into eval mode, gets no gradient, and is moved to the
            student's device.
        batch: inputs by name, tensors (rows, length), with `attention_mask`; `labels` (rows,) if there are any.
        logits: weight of T^2 KL(teacher || student) of the logits, mean over rows; a regression: the squared error.
        hidden: weight of the mean squared difference of hidden states, summed over layers; of the same width.
        attention: weight of that of the attention scores before the softmax, summed over layers.
        temperature: T, above 0.
        layer_map: uniform, last, or the teacher's layer, from 1, of each of the student's layers.

    Returns:
        The loss, the student's outputs and the terms.

    Raises:
        UserError: no weight above 0, or two models that cannot be compared so.
    """
    weights = {"w_cls": logits, "w_rep": hidden, "w_att": attention}
    if not any(weights.values()):
        raise UserError("logits=0, hidden=0, attention=0: one of them must be above 0")
    if "attention_mask" not in batch:
        raise UserError("the batch has no attention_mask: it says which tokens count")
    rest = {"name": "own", "teacher": "given", "start": "model", "w_label": 1.0, "projection": False}
    rest |= {"padding": "masked", "pad_to": None, "average": "rows", "teacher_mode": "eval", "head": "own"}
    recipe = Recipe.of({**rest, **weights, "temperature": temperature, "layer_map": layer_map})
    outputs, terms = Distiller(teacher, model, recipe)(model, batch)
    names = {"cls": "logits", "rep": "hidden", "att": "attention"}
    total = sum(terms[name] for name in sorted(terms))
    assert isinstance(total, Tensor)
    return Distilled(total, outputs, {names[name]: term.detach() for name, term in terms.items()})
