"""The `distill` group of the configuration. Nothing heavy is imported here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from keepfrac.settings import Kind, Settings, choice, count, flag, number, setting, settings, text, whole

LAYER_MAP = Kind(
    lambda value: (
        value in ("uniform", "last")
        or (isinstance(value, list | tuple) and bool(value) and all(map(whole(1).holds, value)))
    ),
    "uniform, last, or a list of the teacher's layers, from 1",
)


@settings
class Recipe(Settings):
    """A teacher and its terms: L = w_label L_task + w_att sum_l att + w_rep sum_l rep + w_cls cls."""

    where: ClassVar[str] = "distill"

    name: str = text("name of the preset, in results")
    teacher: str | None = text(
        "a run's folder, a local Hugging Face folder or a hub name; null: no teacher, and no effect", null=True
    )
    start: str = choice(
        "where the student's weights come from: the `model` group, or the teacher (of the same shapes)",
        "model",
        "teacher",
    )
    w_att: float = number("weight of the attention scores before the softmax, summed over the student's layers")
    w_rep: float = number("weight of the hidden states, summed over the embeddings' output and the student's layers")
    w_cls: float = number("weight of the logits")
    w_label: float = number("weight of the task's own loss")
    temperature: float = number("temperature of the logits", 0, ends="(]")
    layer_map: str | Sequence[int] = setting("the teacher's layer of each layer: see `layers.layer_map`", LAYER_MAP)
    projection: bool = flag("whether a learnt linear projects the student's hidden states to the teacher's width")
    padding: str = choice(
        "masked: real tokens alone; included: all positions, as SparseBERT's code has it", "masked", "included"
    )
    pad_to: int | None = count("tokens that every batch is padded to; null: its longest row", null=True)
    average: str = choice(
        "what the logits' term is a mean over; elements: rows and classes, as SparseBERT's code has it",
        "rows",
        "elements",
    )
    teacher_mode: str = choice("train: the teacher's dropout is on, as in SparseBERT's code", "eval", "train")
    head: str = choice(
        "the teacher's classifier; relu: a ReLU before it, as in SparseBERT's code; BERT only", "own", "relu"
    )

    def check(self) -> None:
        if self.teacher and not self.w_att + self.w_rep + self.w_cls:
            raise self.error("teacher", "without effect: one of distill.w_att, w_rep, w_cls must be > 0")


def recipe_of(distill: Mapping[str, Any] | None) -> Recipe | None:
    """Returns what a `distill` group asks for; None: no teacher.

    Raises:
        UserError: a value that is not allowed.
    """
    recipe = None if not distill or distill["name"] == "none" else Recipe.of(distill)
    return recipe if recipe and recipe.teacher else None
