"""Where the model of a run comes from: the runs before it, and the tasks that they learnt from."""

from pathlib import Path

from src import results
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
    former = ((results.read(run) or {}).get("provenance") or {}).get("trained_on") or []
    shared = sorted(set(former) & set(getattr(task, "overlaps", ())))
    if shared:
        raise UserError(
            f"task={task.name} shares rows with {shared[0]}, on which the model of {run} was tuned"
        )
    return sorted({*former, task.name}) if settings["epochs"] else former


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
