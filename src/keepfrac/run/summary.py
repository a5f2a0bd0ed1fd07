"""The summary of a finished run: scores, what was kept, cost relative to dense, and what to type next."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from keepfrac.storage import results


def lines(record: Mapping, folder: Path) -> list[str]:
    """Returns at most four lines on the results of a run.

    Args:
        record: what stands in results.json.
        folder: the run's.
    """
    found = [results.evaluation(record["scores"]), _kept(record.get("kept") or {}), _cost(record.get("cost") or {})]
    found.append(f"next: python -m src.report {folder.parent}; in Python: {how_to_load(folder / 'model')}")
    return [line for line in found if line]


def _kept(kept: Mapping) -> str:
    parts = []
    for start in ("", "backward_"):
        if kept.get(f"{start}of") not in (None, "everything"):
            achieved = kept.get(f"{start}achieved")
            share = "not measured" if achieved is None else f"{achieved:.4g}"
            asked = kept.get(f"{start}asked", kept.get("asked"))
            parts.append(f"{share} of {kept[f'{start}of']} (asked: {asked:.4g})")
    return "kept: " + "; ".join(parts) if parts else "kept: everything"


def _cost(cost: Mapping) -> str:
    units = {"saved_bytes": (2**20, "MiB saved for backward"), "step_seconds": (1e-3, "ms a step")}
    units["latency_seconds"] = (1e-3, "ms a sentence")
    parts = [
        f"{cost[key] / scale:.4g} {unit} (dense: {cost[f'{key}_dense'] / scale:.4g})"
        for key, (scale, unit) in units.items()
        if cost.get(key) is not None and cost.get(f"{key}_dense") is not None
    ]
    return "cost: " + ", ".join(parts) if parts else ""


def how_to_load(model: Path) -> str:
    """Returns the expression that loads a delivered model in Python, by what its config.json says."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8")) if (model / "config.json").exists() else {}
    name = "".join(config.get("architectures") or [])
    head = re.search(r"For\w+$", name)
    auto = "ForCausalLM" if name.endswith("LMHeadModel") else head[0] if head else ""
    more = ", trust_remote_code=True" if "auto_map" in config else ""
    return f'transformers.AutoModel{auto}.from_pretrained("{model}"{more})'
