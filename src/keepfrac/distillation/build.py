"""From settings to a distiller."""

from __future__ import annotations

from keepfrac.distillation.distiller import Distiller
from keepfrac.distillation.recipe import recipe_of
from keepfrac.errors import UserError
from keepfrac.models.relu_head import with_relu_head
from keepfrac.models.teacher import load_teacher


def distiller_of(settings: dict, task, tokenizer, net) -> Distiller | None:
    """Returns the distiller of a configuration; None: no teacher.

    Args:
        settings: the resolved configuration.
        task: what is learnt.
        tokenizer: the student's.
        net: the student; with `start=teacher` it takes over the teacher's weights, in place.

    Raises:
        UserError: the teacher cannot be read, or does not fit the task or the student.
    """
    recipe = recipe_of(settings["distill"])
    if recipe is None:
        return None
    if settings["fidelity_every"]:
        raise UserError("fidelity_every compares gradients of the task's loss alone: set it to null with a teacher")
    if task.head != "sequence_classification":
        raise UserError(f"distill.teacher: distillation is of classes or a number for a text; task={task.name} is none")
    assert recipe.teacher is not None
    teacher = load_teacher(recipe.teacher, task.head, task.labels, task.num_labels, tokenizer, task.settings.max_length)
    if recipe.start == "teacher":
        _start_from(teacher, net)
    return Distiller(with_relu_head(teacher) if recipe.head == "relu" else teacher, net, recipe)


def _start_from(teacher, net) -> None:
    try:
        net.load_state_dict(teacher.state_dict())
    except RuntimeError as error:
        raise UserError(
            "distill.start=teacher: the student's parts are not of the teacher's shapes; use distill.start=model"
        ) from error
