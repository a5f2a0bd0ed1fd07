"""The `distill` group of the configuration, checked. Nothing heavy is imported here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from keepfrac.errors import UserError

CHOICES = {
    "start": ("model", "teacher"),
    "padding": ("masked", "included"),
    "average": ("rows", "elements"),
    "teacher_mode": ("eval", "train"),
    "head": ("own", "relu"),
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A teacher and its terms: L = w_label L_task + w_att sum_l att + w_rep sum_l rep + w_cls cls.

    Args:
        name: of the preset, in results.
        teacher: a run's folder, a local Hugging Face folder or a hub name; None: no teacher, and no effect.
        start: where the student's weights come from: model (the `model` group) | teacher (the same shapes).
        w_att: weight of the attention scores before the softmax, >= 0, summed over the student's layers.
        w_rep: weight of the hidden states, >= 0, summed over the embeddings' output and the student's layers.
        w_cls: weight of the logits, >= 0.
        w_label: weight of the task's own loss, >= 0.
        temperature: of the logits, > 0.
        layer_map: uniform | last | a list of the teacher's layers, from 1: see `layers.layer_map`.
        projection: whether a learnt linear brings the student's hidden states to the teacher's width.
        padding: masked: real tokens alone | included: all positions, as SparseBERT's code has it.
        pad_to: tokens that every batch is padded to, >= 1; None: its longest row.
        average: of the logits' term: over rows | over elements (rows and classes).
        teacher_mode: eval | train (its dropout is on, as in SparseBERT's code).
        head: the teacher's classifier: own | relu (a ReLU before it, as in SparseBERT's code; BERT only).
    """

    name: str
    teacher: str | None
    start: str
    w_att: float
    w_rep: float
    w_cls: float
    w_label: float
    temperature: float
    layer_map: str | Sequence[int]
    projection: bool
    padding: str
    pad_to: int | None
    average: str
    teacher_mode: str
    head: str

    def __post_init__(self) -> None:
        for key, allowed in CHOICES.items():
            if getattr(self, key) not in allowed:
                raise UserError(f"distill.{key}={getattr(self, key)}: must be one of {', '.join(allowed)}")
        for key in ("w_att", "w_rep", "w_cls", "w_label"):
            if not _is_number(getattr(self, key)) or getattr(self, key) < 0:
                raise UserError(f"distill.{key}={getattr(self, key)}: must be a number >= 0")
        if not _is_number(self.temperature) or self.temperature <= 0:
            raise UserError(f"distill.temperature={self.temperature}: must be a number > 0")
        if self.pad_to is not None and (not _is_number(self.pad_to) or self.pad_to < 1):
            raise UserError(f"distill.pad_to={self.pad_to}: must be a whole number >= 1, or null")
        if self.teacher and not self.w_att + self.w_rep + self.w_cls:
            raise UserError("distill.teacher without effect: one of distill.w_att, w_rep, w_cls must be > 0")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def recipe_of(settings: dict) -> Recipe | None:
    """Returns what the `distill` group of a resolved configuration asks for; None: no teacher.

    Raises:
        UserError: a value that is not allowed.
    """
    chosen = settings.get("distill") or {"name": "none"}
    if chosen["name"] == "none":
        return None
    recipe = Recipe(**{key: value for key, value in chosen.items() if key != "_target_"})
    return recipe if recipe.teacher else None
