"""Which settings distinguish two runs, so that runs that differ by seed alone are pooled."""

import json
import re
from collections.abc import Mapping
from typing import Any

from keepfrac.storage.redact import hide_paths, redact

_TOP_LEFT_OUT = {
    "name", "seed", "lr", "keep_frac", "hardware", "logger", "export", "hydra", "checkpoint_every", "eval_batch_size",
    "fidelity_every", "probe_steps", "rerun",
}  # fmt: skip
_LEFT_OUT = {"task.eval_batch_size", "task.name", "model.name", "method.name", "method.keep_frac"}
# With the method's settings, what distinguishes the arms of one table; all else makes another table.
_OWN = ("backward", "distill", "augment", "fgm", "ema", "r_drop", "layer_decay")
_FORMER_RUNS = ("model.run", "method.distill.teacher")
_SEED_AND_IDENTITY = re.compile(r"_s\d+(?=_)|-[0-9a-f]{8}(?=/|$)")


def settings_of(config: Mapping[str, Any], precision: str | None = None) -> dict[str, Any]:
    """Returns the flat configuration less seed, lr, keep_frac, names, hardware, logger, outputs; plus precision."""
    top = {key: value for key, value in config.items() if key not in _TOP_LEFT_OUT}
    own = {key: value for key in _OWN if (value := top.pop(key, None)) is not None and not _is_idle(value)}
    top["method"] = dict(top.get("method") or {}) | own
    copies = {"seed": config.get("seed"), "lr": config.get("lr")}
    flat = {}
    for key, value in _flatten(top):
        leaf = key.rpartition(".")[2]
        copied = leaf in copies and value == copies[leaf]  # task.seed: ${seed}
        if not (copied or leaf in ("_target_", "num_workers")):
            flat[key] = hide_paths(redact(value)) if isinstance(value, str) else value
    return without_left_out({**flat, "precision": precision}, config.get("seed"))


def without_left_out(settings: Mapping[str, Any], seed: int | None) -> dict[str, Any]:
    """Returns flat settings, also as older records have them, less what distinguishes no two arms.

    That is what is off (null, false, a group's name none), so that cells from before an option pool with later ones;
    copies of the run's seed (method.selection_seed); and of a former run, from which a model comes, its seed.
    """
    return {
        key: _SEED_AND_IDENTITY.sub("", value) if key in _FORMER_RUNS and isinstance(value, str) else value
        for key, value in settings.items()
        if key not in _TOP_LEFT_OUT | _LEFT_OUT
        and not _is_off(key, value)
        and not (key.endswith("_seed") and value == seed)
    }


def _is_idle(value: object) -> bool:
    """Whether a group does nothing: its name is none, or it waits for a teacher."""
    return isinstance(value, Mapping) and (value["name"] == "none" or ("teacher" in value and not value["teacher"]))


def _is_off(key: str, value: object) -> bool:
    return value is None or value is False or (value == "none" and key.endswith(".name"))


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """(dotted key, value) of every leaf; a list is one leaf, as text."""
    leaves: list[tuple[str, Any]] = []
    for key, value in sorted(tree.items()):
        if isinstance(value, Mapping):
            leaves += _flatten(value, f"{prefix}{key}.")
        else:
            leaves.append((f"{prefix}{key}", json.dumps(value) if isinstance(value, list) else value))
    return leaves
