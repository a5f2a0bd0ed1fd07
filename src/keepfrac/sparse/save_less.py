"""`save_less`: makes a stock model save less for its backward pass, in any training loop."""

import difflib
from typing import Any

from torch import nn

from keepfrac.errors import UserError
from keepfrac.sparse.act8bit.saver import Act8bit
from keepfrac.sparse.act8bit.settings import DEFAULTS as LATE
from keepfrac.sparse.convert import SparseActivations
from keepfrac.sparse.gradient_norms import WinnerTakeAllRows
from keepfrac.sparse.protocol import BackwardSaver, Handle
from keepfrac.sparse.recompute import CheckpointedLayers, RecomputedActivations

COLUMNS: dict[str, Any] = {
    "sites": ["linear"],
    "unit": "column",
    "rule": "sampled",
    "norm": "l2",
    "scale": "none",
    "scope": "batch",
}
COLUMNS |= {"share": 0.5, "coverage": 0, "selection_seed": 0}
WAYS: dict[str, tuple[type[BackwardSaver], dict[str, Any]]] = {
    "late": (Act8bit, LATE),
    "norm": (SparseActivations, {"keep_frac": 0.3, **COLUMNS}),
    "rand": (SparseActivations, {"keep_frac": 0.3, **COLUMNS, "rule": "random"}),
    "bkrz": (
        SparseActivations,
        {"keep_frac": 0.3, **COLUMNS, "unit": "element", "rule": "top", "norm": "inf", "scope": "sample"},
    ),
    "wta": (WinnerTakeAllRows, {"keep_frac": 0.3, "gradient_norms": False, "selection_seed": 0}),
    "recompute_gelu": (RecomputedActivations, {"keep_frac": 1.0}),
    "checkpoint": (CheckpointedLayers, {"keep_frac": 1.0}),
}
"""What `by` names, with the defaults of conf/backward, which is not a part of the installed package."""


def save_less(model: nn.Module, keep_frac: float | None = None, by: str = "late", **options: Any) -> Handle:
    """Makes a model save less for its backward pass, in place; its parameters, their names and its outputs stay.

    Freeze what is to be frozen before. In evaluation mode the model runs its stock code. late takes any network with
    linears, by blocks of its own where the table of models/README.md has the family's; norm, rand, bkrz and wta take
    all of that table but GPT-2, whose linears are of another kind; recompute_gelu those of them without a gate;
    checkpoint what Transformers can checkpoint.

    Args:
        model: a Transformers model of such a family, with any head; for late any torch module.
        keep_frac: the share that is kept of what forms the weight gradients, in (0, 1]: of the real tokens' rows with
            `late` and `wta`, of the columns of each linear's input with `norm` and `rand`, of its elements with
            `bkrz`; None: what conf/backward says, 0.3 or 1.
        by: late (8-bit storage, rows chosen in the backward pass), norm, rand, bkrz, wta, recompute_gelu, checkpoint.
        **options: other keys of conf/backward/<by>.yaml, such as store="exact" or selection_seed=1.

    Returns:
        The handle: `report()` a row per place, `kept()` asked and achieved, `state()` and `load_state(state)` for
        resuming, `restore()` puts the stock modules back with the trained weights.

    Raises:
        UserError: an unknown way or option, a value out of its range, or a model that it cannot be done with.
    """
    if by not in WAYS:
        near = difflib.get_close_matches(by, WAYS, n=1)
        raise UserError(f"by={by}: must be one of {', '.join(WAYS)}" + (f"; did you mean {near[0]}?" if near else ""))
    saver, given = WAYS[by]
    asked = {} if keep_frac is None else {"keep_frac": keep_frac}
    return saver(saver.Settings.of({"name": by, **given, **options, **asked})).convert(model)
