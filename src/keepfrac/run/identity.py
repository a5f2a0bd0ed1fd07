"""What a cell of a sweep is: its identity and its folder.

The identity is a hash of everything that can change the result, and of nothing else: not of names, folders, loggers and
launchers; input folders count by their content; the method's own keep_frac counts instead of the common one, so that a
sweep over keep_frac reaches the dense baseline once.
"""

import functools
import hashlib
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from keepfrac.distillation.recipe import recipe_of
from keepfrac.errors import UserError
from keepfrac.models.locate import ROUNDED, locate, locate_teacher
from keepfrac.run.settings import NAME, RunSettings, check, plain, resolved_precision
from keepfrac.storage import hub, results
from keepfrac.storage.build import build, build_target
from keepfrac.storage.fingerprint import fingerprint_of_code, fingerprint_of_folder
from keepfrac.storage.moved import today
from keepfrac.storage.redact import redact

__all__ = ["Cell", "cell", "check", "identify", "plain", "register", "sweep_folder"]

# They change where a run is stored and how it is logged, never its result.
NOT_PART_OF_IT = (
    "hydra", "name", "logger", "checkpoint_every", "keep_frac", "eval_batch_size", "fidelity_every", "rerun",
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One cell of a sweep.

    Args:
        identity: 12 hexadecimal digits.
        folder: where its run lives.
        label: what people read.
        code: fingerprint of the code that makes it now.
        rerun: whether a finished run that other code has made is to be run again.
    """

    identity: str
    folder: Path
    label: str
    code: str
    rerun: bool

    @property
    def code_asked(self) -> str | None:
        """The code that a finished run must be made by to count as done; None: any."""
        return self.code if self.rerun else None


@functools.cache
def _task_fingerprint(settings: str) -> str:
    return build(json.loads(settings)).fingerprint()


def data(task: dict) -> str:
    """Returns a hash of the content of a task's data, wherever it lies."""
    return _task_fingerprint(json.dumps(task | {"seed": 0}, sort_keys=True))


def code(settings: RunSettings) -> str:
    """Returns a hash of the code that makes a run: this package, and the modules of a user's own classes."""
    groups = (settings.method, settings.task, settings.distill, settings.augment, settings.backward)
    modules = {today(group["_target_"]).rpartition(".")[0] for group in groups if "_target_" in group}
    return fingerprint_of_code(*sorted(name for name in modules if name.partition(".")[0] != "keepfrac"))


def identify(settings: dict) -> str:
    """Returns the identity of a resolved configuration."""
    hub.resolve_hub()
    part = {key: value for key, value in settings.items() if key not in NOT_PART_OF_IT}
    hardware = part.pop("hardware")
    if hardware["devices"] != 1:
        part["devices"] = hardware["devices"]  # each process has a dropout of its own
    part["precision"] = resolved_precision(hardware["accelerator"], hardware["precision"])
    part["data"] = data(part["task"])
    part["task"] = _without_places(part["task"])
    part["model"] = _model_identity(part["model"])
    if (folder := part["method"].get("adapter")) and Path(folder).is_dir():
        part["method"] = part["method"] | {"adapter": fingerprint_of_folder(Path(folder))}
    if "_target_" in (augment := part.get("augment") or {}):
        part["augment"] = build_target(augment["_target_"]).contents(augment)
    part["distill"] = _distill_identity(part.get("distill") or {})  # settings of before the group have none
    text = json.dumps(_settled(part), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _settled(value):
    """Leaves out what is off, so that a new option that is off by default changes no identity.

    Off are null, false and {name: none}. 0.30000000000000004, which a range() leaves, is 0.3;
    1.0 is 1.
    """
    if isinstance(value, dict):
        on = {key: _settled(one) for key, one in value.items() if key != "_target_"}
        return {key: one for key, one in on.items() if one is not None and one is not False and one != {"name": "none"}}
    if isinstance(value, list):
        return [_settled(one) for one in value]
    if isinstance(value, float) and math.isfinite(value):
        return int(value) if value.is_integer() else float(f"{value:.10g}")
    return value


def _without_places(task: dict) -> dict:
    """Leaves out where the data lies, also of a task within a task."""
    return {
        key: _without_places(value) if isinstance(value, dict) else value
        for key, value in task.items()
        if not _is_place(key)
    }


def _is_place(key: str) -> bool:
    return key in ("data_dir", "folder", "num_workers", "eval_batch_size") or key.endswith("_file")


def _model_identity(model: dict) -> dict:
    folder = Path(model["run"]) / "model" if model["run"] else Path(model["name"])
    if model["run"] and not folder.is_dir():
        raise UserError(f"model.run={model['run']}: not the folder of a finished run (it has no model/ in it)")
    if not folder.is_dir():
        for key in ("tokenizer",) if model["config"] else ("name", "tokenizer"):
            if isinstance(name := model[key], str):
                found = locate(name, model["package"], f"model.{key}")  # missing weights are found before a sweep
                if found.endswith(ROUNDED):
                    model = {**model, "weights": Path(found).name}  # not those that the hub has by this name
        return model
    return {**model, "run": None, "name": fingerprint_of_folder(folder)}


def _distill_identity(distill: dict) -> dict | None:
    """A teacher counts by its content; without one nothing of the group does."""
    if recipe_of(distill) is None:
        return None
    source = locate_teacher(distill["teacher"])
    return {**distill, "teacher": fingerprint_of_folder(Path(source)) if Path(source).is_dir() else source}


def _short(value: object) -> str:
    name = redact(str(value), environ={})  # not by the environment, which differs from machine to machine
    return re.sub(r"[^\w.+-]+", "-", name.rstrip("/").rsplit("/", 1)[-1])[:40]


def cell(cfg: DictConfig | dict | RunSettings) -> Cell:
    """Checks a configuration and returns its cell."""
    settings = cfg if isinstance(cfg, RunSettings) else check(cfg)
    identity, method, backward = identify(settings.plain()), settings.method, settings.backward["name"]
    name = method["name"] if backward == "none" else f"{method['name']}+{backward}"
    parts = [name, f"k{method['keep_frac']:.4g}", f"lr{settings.lr:g}", f"s{settings.seed}"]
    parts += [_short(settings.task["name"]), "from_run" if settings.model.run else _short(settings.model.name)]
    label = "_".join(map(_short, parts))
    folder = sweep_folder(settings.name) / f"{label}-{identity[:8]}"
    return Cell(identity, folder, label, code(settings), settings.rerun == "changed")


def sweep_folder(name: str) -> Path:
    """Returns the folder of a sweep: multirun/<name>; KEEPFRAC_MULTIRUN names another place than multirun.

    Raises:
        UserError: the name would lead out of it.
    """
    if not NAME.holds(name):
        raise UserError(f"name={name}: must be {NAME.says}")
    return results.multirun() / name


def register() -> None:
    """Makes ${cell_folder:}, ${cell_name:} and ${sweep_folder:} known to OmegaConf."""
    new = functools.partial(OmegaConf.register_new_resolver, replace=True)
    new("cell_folder", lambda *, _root_: str(cell(_root_).folder))
    new("cell_name", lambda *, _root_: cell(_root_).folder.name)
    new("sweep_folder", lambda *, _root_: str(sweep_folder(_root_.name)))
