"""The distiller: the one forward pass of a training step, of student and teacher, and the terms that come of it.

It belongs to the module that trains; the teacher does not: it is in no checkpoint, state dict or optimizer, runs
without gradients, and moves to the student's device on the first batch. What is held against what is decided by the
models as they are at that step, so a method may cut its model on the way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from keepfrac.distillation.layers import layer_map
from keepfrac.distillation.losses import attention_loss, hidden_loss, labels_loss, logits_loss
from keepfrac.distillation.recipe import Recipe
from keepfrac.errors import UserError
from keepfrac.models.anatomy import anatomy
from keepfrac.models.attention_scores import check_recordable, check_recorded, recorded

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Inputs = Mapping[str, Tensor]
Pairs = list[tuple[int, int]]
"""Layers of the student, each with its layer of the teacher."""


class Activations(NamedTuple):
    """What one forward pass gives: the outputs, and the attention scores by layer from 1 (empty: not wanted)."""

    outputs: Any
    scores: dict[int, Tensor]


class Distiller(nn.Module):
    """A teacher of a student.

    Args:
        teacher: without gradients.
        student: the model as it is before training, for the checks and the width of its hidden states.
        settings: weights and settings of the terms.

    Raises:
        UserError: the student cannot be held to this teacher so.
    """

    Settings = Recipe

    def __init__(self, teacher: PreTrainedModel, student: PreTrainedModel, settings: Recipe):
        super().__init__()
        self.recipe = recipe = settings
        self._teacher = (teacher.train(recipe.teacher_mode == "train"),)  # in a tuple: no part of the model
        self.projection: nn.Linear | None = None
        if recipe.w_rep:
            self.projection = self._projection(student.config.hidden_size, teacher.config.hidden_size)
        for net in (student, teacher) if recipe.w_att else ():
            check_recordable(net)
        if recipe.w_att or recipe.w_rep:
            layer_map(recipe.layer_map, _depth(student), _depth(teacher))

    @property
    def teacher(self) -> PreTrainedModel:
        """The teacher."""
        return self._teacher[0]

    def _projection(self, own: int, wanted: int) -> nn.Linear | None:
        if self.recipe.projection:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                return nn.Linear(own, wanted)
        if own != wanted:
            raise UserError(
                f"the student's hidden states are {own} wide, the teacher's {wanted}: set distill.projection=true, or"
                " distill.w_rep=0 (distill=logits)"
            )
        return None

    def forward(self, net: PreTrainedModel, inputs: Inputs) -> tuple[Any, dict[str, Tensor]]:
        """Returns the student's outputs, and the weighted terms by name."""
        inputs = self._padded(inputs)
        teacher = self._forward_teacher(inputs)
        student = self._forward_with_activations(net, inputs)
        return student.outputs, self.terms(net, student, teacher, inputs["attention_mask"])

    @torch.no_grad()
    def _forward_teacher(self, inputs: Inputs) -> Activations:
        if self.teacher.device != inputs["input_ids"].device:
            self.teacher.to(inputs["input_ids"].device)
        return self._forward_with_activations(self.teacher, inputs)

    def _forward_with_activations(self, net: PreTrainedModel, inputs: Inputs) -> Activations:
        wanted = {"output_hidden_states": True} if self.recipe.w_rep else {}
        paths = {
            number: layer.attention
            for number, layer in enumerate(anatomy(net).runs if self.recipe.w_att else (), start=1)
            if layer.attention is not None
        }
        with recorded(net, paths) as scores:
            outputs = net(**inputs, **wanted)
        check_recorded(paths, scores)
        return Activations(outputs, scores)

    def terms(
        self, net: PreTrainedModel, student: Activations, teacher: Activations, mask: Tensor
    ) -> dict[str, Tensor]:
        """Returns the weighted terms by name: att and rep summed over the student's layers, cls."""
        recipe, found = self.recipe, {}
        if recipe.w_att or recipe.w_rep:
            pairs = list(enumerate(layer_map(recipe.layer_map, _depth(net), _depth(self.teacher)), start=1))
        if recipe.w_att:
            found["att"] = recipe.w_att * self._attention(pairs, student, teacher, mask)
        if recipe.w_rep:
            found["rep"] = recipe.w_rep * self._hidden([(0, 0), *pairs], student, teacher, mask)
        if recipe.w_cls:
            found["cls"] = recipe.w_cls * self._logits(net, student, teacher)
        return found

    def _attention(self, pairs: Pairs, student: Activations, teacher: Activations, mask: Tensor) -> Tensor:
        terms = [
            attention_loss(student.scores[own], teacher.scores[other], mask, self.recipe.padding)
            for own, other in pairs
            if own in student.scores and other in teacher.scores  # a sub-layer that was cut away has none
        ]
        return torch.stack(terms).sum() if terms else torch.zeros((), device=mask.device)

    def _hidden(self, pairs: Pairs, student: Activations, teacher: Activations, mask: Tensor) -> Tensor:
        own, wanted = student.outputs.hidden_states, teacher.outputs.hidden_states
        projection = self.projection or nn.Identity()
        terms = [hidden_loss(projection(own[i]), wanted[j], mask, self.recipe.padding) for i, j in pairs]
        return torch.stack(terms).sum()

    def _logits(self, net: PreTrainedModel, student: Activations, teacher: Activations) -> Tensor:
        logits = (student.outputs.logits, teacher.outputs.logits)
        if net.config.problem_type == "multi_label_classification":
            return labels_loss(*logits, self.recipe.temperature)
        return logits_loss(*logits, self.recipe.temperature, self.recipe.average)

    def _padded(self, inputs: Inputs) -> dict[str, Tensor]:
        """The inputs, filled up to `pad_to` tokens."""
        missing = (self.recipe.pad_to or 0) - inputs["input_ids"].shape[1]
        if missing <= 0:
            return dict(inputs)
        token = self.teacher.config.pad_token_id or 0
        return {
            name: pad(tensor, (0, missing), value=token if name == "input_ids" else 0)
            if tensor.shape == inputs["input_ids"].shape
            else tensor
            for name, tensor in inputs.items()
        }


def _depth(net: PreTrainedModel) -> int:
    return len(anatomy(net).runs)
