"""Where the model of a run comes from: the runs before it, and the tasks that they learnt from."""

from pathlib import Path

from src import results
from src.distill.recipe import recipe_of
from src.errors import UserError


def trained_on(settings: dict, task) -> list[str]:
    """Returns the tasks that the delivered model has learnt from, by our own runs.

    Raises:
        UserError: one of them shares rows with this task, whose scores would then be worthless.
    """
    model = settings["model"]
    run = (
        Path(model["run"]) if model["run"] else Path(model["name"]).parent
    )  # model.name may be a run's model/
    teacher = _teacher(settings)
    for who, tasks in (
        (f"the model of {run}", _tasks_of(run)),
        (f"the teacher {teacher}", _tasks_of(teacher)),
    ):
        if shared := sorted(set(tasks) & set(getattr(task, "overlaps", ()))):
            raise UserError(f"task={task.name} shares rows with {shared[0]}, on which {who} was tuned")
    former = [*_tasks_of(run), *_tasks_of(teacher)]
    return sorted({*former, task.name}) if settings["epochs"] else former


def _tasks_of(run: Path | None) -> list[str]:
    return (((results.read(run) or {}).get("provenance") or {}).get("trained_on") or []) if run else []


def _teacher(settings: dict) -> Path | None:
    """The folder of the teacher's run, which hands on what it was tuned on; None: no teacher, or no run of ours."""
    recipe = recipe_of(settings) if settings["epochs"] else None
    name = Path(recipe.teacher) if recipe and recipe.teacher else None
    return name if name is None or results.read(name) is not None else name.parent


def stages(settings: dict) -> list[dict]:
    """Returns the runs that the model came through before this one, first to last."""
    run = settings["model"]["run"]
    former = results.read(Path(run)) if run else None
    if former is None or "config" not in former:
        return []
    one = {key: former["config"]["method"][key] for key in ("name", "keep_frac")}
    one |= {
        "task": former["config"]["task"]["name"],
        "identity": former["identity"],
        "kept": former.get("kept"),
    }
    return [*((former.get("provenance") or {}).get("stages") or []), one]
