"""Where the model of a run comes from: the runs before it, and the tasks that they learnt from."""

from collections.abc import Mapping
from pathlib import Path

from keepfrac.distillation.recipe import recipe_of
from keepfrac.errors import UserError
from keepfrac.run.settings import RunSettings
from keepfrac.storage import results


def trained_on(settings: RunSettings, task) -> list[str]:
    """Returns the tasks that the delivered model has learnt from, by our own runs.

    Raises:
        UserError: one of them shares rows with this task, or was this task by another fold: its scores would be
            worthless.
    """
    model = settings.model
    run = Path(model.run) if model.run else Path(model.name).parent  # model.name may be a run's model/
    teacher = _teacher(settings)
    for who, folder in ((f"the model of {run}", run), (f"the teacher {teacher}", teacher)):
        if shared := sorted(set(_tasks_of(folder)) & set(getattr(task, "overlaps", ()))):
            raise UserError(f"task={task.name} shares rows with {shared[0]}, on which {who} was tuned")
        _refuse_other_fold(who, folder, settings.task)
    former = [*_tasks_of(run), *_tasks_of(teacher)]
    return sorted({*former, task.name}) if settings.epochs else former


def _tasks_of(run: Path | None) -> list[str]:
    return (((results.read(run) or {}).get("provenance") or {}).get("trained_on") or []) if run else []


def _refuse_other_fold(who: str, folder: Path | None, task: Mapping) -> None:
    """Refuses a model that has learnt from, or read, what is this task's test set by folds."""
    name, *own = _fold(task)
    for former, *its in _folds_of(folder):
        if name == former and own[0] and own != its:
            raise UserError(
                f"task={name} of folds={own[0]}, fold={own[1]}: {who} has seen this test set (folds={its[0]},"
                f" fold={its[1]}); all stages need the same folds and fold (pre-training: task.of.folds, task.of.fold)"
            )


def _folds_of(folder: Path | None) -> list[tuple]:
    """Name, folds and fold of the task of this run, and of all runs that its model came through and are still there."""
    found, seen = [], set()
    while folder is not None and (config := (results.read(folder) or {}).get("config")):
        if (place := folder.resolve()) in seen:
            raise UserError(f"model.run={folder}: the runs that this model comes from name one another in a ring")
        seen.add(place)
        found.append(_fold(config.get("task") or {}))
        run = (config.get("model") or {}).get("run")
        folder = Path(run) if run else None
    return found


def _fold(task: Mapping) -> tuple:
    """Returns name, folds and fold of a task, or of the one whose texts it takes."""
    of = task.get("of") or task
    return of.get("name"), of.get("folds"), of.get("fold")


def _teacher(settings: RunSettings) -> Path | None:
    """The folder of the teacher's run, whose lineage is inherited; None: no teacher, or no run of ours."""
    recipe = recipe_of(settings.distill) if settings.epochs else None
    name = Path(recipe.teacher) if recipe and recipe.teacher else None
    return name if name is None or results.read(name) is not None else name.parent


def stages(run: str | None) -> list[dict]:
    """Returns the runs that a model came through, first to last, of which `run` is the last."""
    former = results.read(Path(run)) if run else None
    if former is None or "config" not in former:
        return []
    one = {key: former["config"]["method"][key] for key in ("name", "keep_frac")}
    one |= {"task": former["config"]["task"]["name"], "identity": former["identity"], "kept": former.get("kept")}
    return [*((former.get("provenance") or {}).get("stages") or []), one]
