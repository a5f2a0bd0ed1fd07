"""What a cell of a sweep is: its checked configuration, its identity and its folder.

The identity is a hash of everything that can change the result, and of nothing else: not of names, folders, loggers and
launchers; input folders count by their content; the method's own keep_frac counts instead of the common one, so that a
sweep over keep_frac reaches the dense baseline once.
"""

import functools
import hashlib
import json
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

from keepfrac.distillation.recipe import recipe_of
from keepfrac.errors import UserError
from keepfrac.models.locate import ROUNDED, locate, locate_teacher
from keepfrac.storage.build import build, build_target, check_settings
from keepfrac.storage.fingerprint import fingerprint_of_folder

Check = tuple[Callable[[object], bool], str]


def _number(low: float, high: float = math.inf, *, open_low: bool = False, open_high: bool = False) -> Check:
    def holds(value) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
            return False
        return (value > low if open_low else value >= low) and (value < high if open_high else value <= high)

    left, right = "(" if open_low else "[", ")" if open_high or high == math.inf else "]"
    return holds, f"a number in {left}{low:g}, {high:g}{right}"


def _whole(low: int) -> Check:
    return (
        lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= low,
        f"a whole number >= {low}",
    )


def _or_null(check: Check) -> Check:
    return lambda value: value is None or check[0](value), f"{check[1]}, or null"


def _one_of(*allowed: str) -> Check:
    return lambda value: value in allowed, "one of " + ", ".join(allowed)


_FRACTION = _number(0, 1, open_low=True)
CHECKS: dict[str, Check] = {
    "name": (
        lambda value: isinstance(value, str) and bool(re.fullmatch(r"[\w.+-]{1,100}", value)),
        "letters, digits, . _ + -",
    ),
    "seed": _whole(0),
    "lr": _number(0, 1, open_low=True),
    "epochs": _whole(0),
    "steps": _or_null(_whole(1)),
    "batch_size": _whole(1),
    "eval_batch_size": _whole(1),
    "accumulate": _whole(1),
    "warmup": _number(0, 1, open_high=True),
    "weight_decay": _number(0),
    "clip": _or_null(_number(0, open_low=True)),
    "fgm": _or_null(_number(0, open_low=True)),
    "ema": _or_null(_number(0, 1, open_low=True, open_high=True)),
    "r_drop": _or_null(_number(0, open_low=True)),
    "layer_decay": _or_null(_FRACTION),
    "eval_every": _or_null(_whole(1)),
    "checkpoint_every": _whole(1),
    "probe_steps": _whole(0),
    "fidelity_every": _or_null(_whole(1)),
    "keep_frac": _FRACTION,
    "method.keep_frac": _FRACTION,
    "task.rows": _or_null(_whole(1)),
    "augment.times": _or_null(_whole(1)),
    "augment.p": _number(0, 1),
    "augment.candidates": _whole(1),
    "augment.glove_words": _whole(1),
    "augment.words": _one_of("auto", "masked_lm", "neighbours"),
    "task.max_length": _or_null(_whole(3)),
    "model.attention": _one_of("sdpa", "eager"),
    "model.dropout": _or_null(_number(0, 1, open_high=True)),
    "model.attention_dropout": _or_null(_number(0, 1, open_high=True)),
    "hardware.precision": _one_of("auto", "32-true", "bf16-mixed"),
    "hardware.devices": _whole(1),
    "hardware.num_workers": _whole(0),
    "hardware.threads": _or_null(_whole(1)),
}
# They change where a run goes and how it is told, never its result.
NOT_PART_OF_IT = ("hydra", "name", "logger", "checkpoint_every", "keep_frac", "eval_batch_size", "fidelity_every")


@dataclass(frozen=True)
class Cell:
    """One cell of a sweep.

    Args:
        identity: 12 hexadecimal digits.
        folder: where its run lives.
        label: what people read.
    """

    identity: str
    folder: Path
    label: str


def plain(cfg: DictConfig) -> dict:
    """Returns the resolved configuration as plain containers, without Hydra's own part.

    Raises:
        UserError: a mandatory value is missing.
    """
    own = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    try:
        settings = OmegaConf.to_container(own, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise UserError(
            f"{error.full_key}: a value is needed, such as {error.full_key}=multirun/<name>/<cell>"
        ) from error
    assert isinstance(settings, dict)
    return {str(key): value for key, value in settings.items()}


def select(settings: dict, key: str):
    """Returns the value at a dotted key; None where it does not exist."""
    value: object = settings
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def check(cfg: DictConfig | dict) -> None:
    """Checks types and ranges of the common keys.

    Raises:
        UserError: names the key, its value and what is allowed.
    """
    settings = cfg if isinstance(cfg, dict) else plain(cfg)
    for key, (holds, allowed) in CHECKS.items():
        parent = select(settings, key.rpartition(".")[0]) if "." in key else settings
        if isinstance(parent, dict) and key.rpartition(".")[2] in parent and not holds(select(settings, key)):
            raise UserError(f"{key}={select(settings, key)}: must be {allowed}")
    if settings["batch_size"] % (settings["accumulate"] * settings["hardware"]["devices"]):
        raise UserError(
            f"batch_size={settings['batch_size']} (over all devices) must be a multiple of"
            f" accumulate={settings['accumulate']} x hardware.devices={settings['hardware']['devices']}"
        )
    recipe_of(settings)
    for key in ("fgm", "ema"):
        if settings.get(key) is not None and settings["hardware"]["strategy"] == "fsdp":
            raise UserError(f"{key}={settings[key]}: must be null where a strategy shards the weights (fsdp)")
    if select(settings, "export.name") == "peft":
        _check_peft(settings)
    check_settings(settings["method"])
    if "_target_" in (backward := settings.get("backward") or {}):
        if getattr(build_target(settings["method"]["_target_"]), "replaces_backward", False):
            raise UserError(
                f"backward={backward['name']} beside method={settings['method']['name']}, which brings layers with a"
                " backward pass of their own: leave one of the two out"
            )
        check_settings(backward)


def _check_peft(settings: dict) -> None:
    """Refuses export=peft, before training, where the delivered model will have no updates."""
    method = settings["method"]
    if method.get("merge", "keep") != "keep":
        raise UserError("export=peft needs method.merge=keep: merged updates cannot be taken out again")
    if "merge" not in method and not select(settings, "model.run"):
        raise UserError(
            f"export=peft: method={method.get('name')} delivers no updates of its own; take method=lora"
            " method.merge=keep, or a model of a run that has them (model=from_run)"
        )


@functools.cache
def _task_fingerprint(settings: str) -> str:
    return build(json.loads(settings)).fingerprint()


@functools.cache
def resolved_precision(accelerator: str, precision: str) -> str:
    """Returns the precision that a run will have: `auto` is bf16-mixed where the hardware multiplies bf16."""
    if precision != "auto":
        return precision
    import torch

    if accelerator == "gpu":
        return "bf16-mixed" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "32-true"
    return "bf16-mixed" if torch.ops.mkldnn._is_mkldnn_bf16_supported() and _has_fast_bf16() else "32-true"


def _has_fast_bf16() -> bool:
    # oneDNN also calls bf16 supported where it emulates it, which is slower than fp32
    try:
        return bool({"avx512_bf16", "amx_bf16"} & set(Path("/proc/cpuinfo").read_text().split()))
    except OSError:
        return False


def identify(settings: dict) -> str:
    """Returns the identity of a resolved configuration."""
    from keepfrac.storage import hub

    hub.settle()
    part = {key: value for key, value in settings.items() if key not in NOT_PART_OF_IT}
    hardware = part.pop("hardware")
    if hardware["devices"] != 1:
        part["devices"] = hardware["devices"]  # each process has a dropout of its own
    part["precision"] = resolved_precision(hardware["accelerator"], hardware["precision"])
    task = dict(part["task"])
    part["data"] = _task_fingerprint(json.dumps(task | {"seed": 0}, sort_keys=True))
    part["task"] = _without_places(task)
    part["model"] = _model_identity(part["model"])
    if (folder := part["method"].get("adapter")) and Path(folder).is_dir():
        part["method"] = part["method"] | {"adapter": fingerprint_of_folder(Path(folder))}
    if "_target_" in (augment := part.get("augment") or {}):
        part["augment"] = build_target(augment["_target_"]).contents(augment)
    part["distill"] = _distill_identity(part.get("distill") or {})
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
        for name in (model["name"] if not model["config"] else None, model["tokenizer"]):
            if isinstance(name, str):
                found = locate(name, model["package"])  # missing weights are found before a sweep starts
                if found.endswith(ROUNDED):
                    model = {**model, "weights": Path(found).name}  # not those that the hub has by this name
        return model
    return {**model, "run": None, "name": fingerprint_of_folder(folder)}


def _distill_identity(distill: dict) -> dict | None:
    """A teacher counts by its content; without one nothing of the group does."""
    if recipe_of({"distill": distill or {"name": "none"}}) is None:
        return None
    source = locate_teacher(distill["teacher"])
    return {**distill, "teacher": fingerprint_of_folder(Path(source)) if Path(source).is_dir() else source}


def _short(value: object) -> str:
    return re.sub(r"[^\w.+-]+", "-", str(value).rstrip("/").rsplit("/", 1)[-1])[:40]


def cell(cfg: DictConfig | dict) -> Cell:
    """Checks a configuration and returns its cell."""
    settings = cfg if isinstance(cfg, dict) else plain(cfg)
    check(settings)
    identity = identify(settings)
    method, task, model = settings["method"], settings["task"], settings["model"]
    beneath = (settings.get("backward") or {"name": "none"})["name"]
    name = method["name"] if beneath == "none" else f"{method['name']}+{beneath}"
    parts = [name, f"k{method['keep_frac']:.4g}", f"lr{settings['lr']:g}", f"s{settings['seed']}"]
    parts += [_short(task["name"]), "from_run" if model["run"] else _short(model["name"])]
    label = "_".join(map(_short, parts))
    return Cell(identity, sweep_folder(settings["name"]) / f"{label}-{identity[:8]}", label)


def sweep_folder(name: str) -> Path:
    """Returns the folder of a sweep: multirun/<name>; KEEPFRAC_MULTIRUN names another place than multirun."""
    return Path(os.environ.get("KEEPFRAC_MULTIRUN", "multirun")) / name


def register() -> None:
    """Makes ${cell_folder:}, ${cell_name:} and ${sweep_folder:} known to OmegaConf."""
    new = functools.partial(OmegaConf.register_new_resolver, replace=True)
    new("cell_folder", lambda *, _root_: str(cell(_root_).folder))
    new("cell_name", lambda *, _root_: cell(_root_).folder.name)
    new("sweep_folder", lambda *, _root_: str(sweep_folder(_root_.name)))
