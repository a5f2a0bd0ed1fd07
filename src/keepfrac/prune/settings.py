"""Checks of structured pruning's settings that need no model: one clear sentence before a sweep starts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from keepfrac.errors import UserError
from keepfrac.prune.constraint import ProportionalIntegral
from keepfrac.prune.gates import FAMILIES
from keepfrac.prune.latency import DTYPES
from keepfrac.prune.schedules import RATES
from keepfrac.prune.select import SCOPES, Limits

COSTS = ("params", "macs", "latency")
MEASURED = {"rows", "dtype", "repeats"}
COARSE = {"attention": {"heads"}, "ffn": {"neurons"}, "layers": {"heads", "neurons"}}
GAINS = {"proportional", "integral", "quadratic", "limit"}


def check_budget(settings: Mapping[str, Any]) -> None:
    """Checks what keep_frac is a share of, and the limits of the choice; keys that a method lacks are left out.

    Raises:
        UserError: names the key, its value and what is allowed.
    """
    _among(settings, "cost", COSTS)
    _among(settings, "scope", SCOPES)
    if settings.get("cost", "params") != "params":
        _whole(settings, "length", 1)
    if settings.get("cost") == "latency":
        measured = settings["latency"]
        _keys("latency", measured, MEASURED)
        for key in ("rows", "repeats"):
            _whole(measured, key, 1, "latency.")
        _among(measured, "dtype", tuple(DTYPES), "latency.")
    for key in {"align", "floor"} & set(settings):
        if not isinstance(settings[key], Mapping):
            raise UserError(f"method.{key}={settings[key]}: must be a mapping, such as {{heads: 1, neurons: 8}}")
    Limits(settings.get("align", {}), settings.get("floor", {}))


def check_settled_at(settings: Mapping[str, Any]) -> None:
    """Checks when the structure is chosen."""
    check_number(settings, "settled_at", 0, 1)


def check_gates(settings: Mapping[str, Any]) -> None:
    """Checks what `methods.l0` takes beside its budget.

    Raises:
        UserError: names the key, its value and what is allowed.
    """
    _check_families(settings)
    _check_times(settings)
    check_number(settings, "open_probability", 0, 1, "()")
    for key in ("beta", "limit", "gate_lr", "multiplier_lr"):
        check_number(settings, key, 0, ends="()")
    if settings["l2"] is not None:
        check_number(settings, "l2", 0)
    if settings["controller"] is not None:
        _keys("controller", settings["controller"], GAINS)
        for key in sorted(GAINS):
            check_number(settings["controller"], key, 0, prefix="controller.")
        ProportionalIntegral(**settings["controller"])
        if settings["anti_windup"]:
            raise UserError("method.anti_windup=true is for the multipliers: set method.controller=null beside it")


def _check_families(settings: Mapping[str, Any]) -> None:
    families = settings["families"]
    if isinstance(families, str) or not families or set(families) - set(FAMILIES):
        raise UserError(f"method.families={families}: must be a list of some of {', '.join(FAMILIES)}")
    whole = [family for family, units in COARSE.items() if family in families and units - set(families)]
    if whole and settings.get("scope", "global") != "global":
        raise UserError(
            f"method.scope={settings['scope']} with method.families={list(families)}: {whole[0]} that go whole never"
            f" fit their own share; use method.scope=global, or gate {' and '.join(sorted(COARSE[whole[0]]))} too"
        )
    _whole(settings, "whiten", 0)
    if settings["rank"] is not None:
        _whole(settings, "rank", 1)
    if "ranks" not in families and (settings["rank"] or settings["whiten"] or settings["keep_factors"]):
        raise UserError("method.rank, method.whiten and method.keep_factors are for method.families with ranks")
    if "ranks" in families and settings["cost"] == "latency":
        raise UserError(
            "method.cost=latency knows heads and neurons only: use params or macs with method.families with ranks"
        )


def _check_times(settings: Mapping[str, Any]) -> None:
    times = {key: settings[key] for key in ("prefinetune", "target_warmup", "settled_at")}
    for key in times:
        check_number(settings, key, 0, 1)
    begin, warm, settled = times.values()
    if not begin < warm <= settled:
        raise UserError(f"method.prefinetune={begin}, target_warmup={warm}, settled_at={settled}: must rise, in [0, 1]")
    if not settings["train_weights"] and settled < 1:
        raise UserError("method.train_weights=false leaves nothing to train after settled_at: set settled_at=1")
    _among(settings, "gate_schedule", tuple(RATES))
    check_number(settings, "gate_warmup", 0, 1, "[)")
    if settings["gate_schedule"] == "inverse_root" and settings["gate_warmup"] == 0:
        raise UserError(
            "method.gate_warmup=0 with method.gate_schedule=inverse_root leaves every rate at 0: it must be above 0"
        )


def _among(settings: Mapping[str, Any], key: str, allowed: tuple[str, ...], prefix: str = "") -> None:
    if key in settings and settings[key] not in allowed:
        raise UserError(f"method.{prefix}{key}={settings[key]}: must be one of {', '.join(allowed)}")


def _keys(name: str, given: object, wanted: set[str]) -> None:
    if not isinstance(given, Mapping) or set(given) != wanted:
        raise UserError(f"method.{name}={given}: must give {', '.join(sorted(wanted))}, and nothing else")


def _whole(settings: Mapping[str, Any], key: str, low: int, prefix: str = "") -> None:
    value = settings[key]
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise UserError(f"method.{prefix}{key}={value}: must be a whole number >= {low}")


def check_number(
    settings: Mapping[str, Any], key: str, low: float, high: float = math.inf, ends: str = "[]", prefix: str = ""
) -> None:
    """Holds a value against an interval; its ends are written as in mathematics."""
    value = settings[key]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    inside = number and low <= value <= high
    if inside and not (ends[0] == "(" and value == low) and not (ends[1] == ")" and value == high):
        return
    right = ")" if high == math.inf else ends[1]
    raise UserError(f"method.{prefix}{key}={value}: must be a number in {ends[0]}{low:g}, {high:g}{right}")
