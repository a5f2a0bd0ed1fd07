"""Settings that cannot be are refused before a model is loaded."""

import pytest
from keepfrac.prune.settings import check_budget, check_gates, check_settled_at

from keepfrac.errors import UserError

BUDGET = {
    "cost": "latency",
    "length": 128,
    "latency": {"rows": 8, "dtype": "float32", "repeats": 20},
    "scope": "global",
    "align": {"heads": 1, "neurons": 8},
    "floor": {"heads": 1, "neurons": 8},
}
GATES = {
    "cost": "params",
    "families": ["heads", "ranks"],
    "rank": None,
    "whiten": 0,
    "keep_factors": False,
    "prefinetune": 0.1,
    "target_warmup": 0.5,
    "settled_at": 0.6,
    "open_probability": 0.995,
    "beta": 0.66667,
    "limit": 12,
    "gate_lr": 0.05,
    "multiplier_lr": 0.1,
    "gate_schedule": "constant",
    "gate_warmup": 0,
    "controller": None,
    "anti_windup": False,
    "l2": None,
    "train_weights": True,
}
GAINS = {"proportional": 0, "integral": 0.02, "quadratic": 30, "limit": 10}


def test_what_can_be_passes():
    check_budget(BUDGET)
    check_budget({"cost": "params"})  # a method without the other keys
    check_gates(GATES)
    check_gates(GATES | {"controller": GAINS, "rank": 8, "l2": 0.05, "whiten": 4})
    check_gates(GATES | {"families": ["neurons"], "scope": "layer", "l2": 0})
    check_settled_at({"settled_at": 1})


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"cost": "watts"}, "method.cost=watts: must be one of params, macs, latency"),
        ({"length": 0}, "method.length=0: must be a whole number >= 1"),
        ({"latency": {"rows": 8}}, "must give dtype, repeats, rows"),
        ({"latency": BUDGET["latency"] | {"rows": 0}}, "method.latency.rows=0"),
        ({"latency": BUDGET["latency"] | {"repeats": 1.5}}, "method.latency.repeats=1.5"),
        ({"latency": BUDGET["latency"] | {"dtype": "int8"}}, "float32, bfloat16, float16"),
        ({"scope": "model"}, "method.scope=model: must be one of global, family, layer"),
        ({"align": None}, "method.align=None: must be a mapping"),
        ({"align": {"heads": 0}}, "align 0 of heads"),
        ({"floor": {"rows": 1}}, "floor 1 of rows"),
        ({"floor": {"heads": 0.5}}, "floor 0.5 of heads"),
    ],
)
def test_a_budget_that_cannot_be(wrong, said):
    with pytest.raises(UserError, match=said):
        check_budget(BUDGET | wrong)


@pytest.mark.parametrize("settled_at", [-0.1, 1.1, "late", True])
def test_progress_lies_between_0_and_1(settled_at):
    with pytest.raises(UserError, match=rf"method.settled_at={settled_at}: must be a number in \[0, 1\]"):
        check_settled_at({"settled_at": settled_at})


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"families": "heads"}, "method.families=heads: must be a list"),
        ({"families": []}, "must be a list of some of heads, neurons"),
        ({"families": ["rows"]}, "must be a list of some of heads, neurons"),
        ({"cost": "latency"}, "heads and neurons only"),
        ({"rank": 0}, "method.rank=0: must be a whole number >= 1"),
        ({"rank": 2.5}, "method.rank=2.5"),
        ({"whiten": -1}, "method.whiten=-1"),
        ({"families": ["heads"], "rank": 4}, "families with ranks"),
        ({"families": ["heads"], "keep_factors": True}, "families with ranks"),
        ({"prefinetune": 0.5}, "must rise"),
        ({"target_warmup": 0.7}, "must rise"),
        ({"prefinetune": "early"}, "method.prefinetune=early"),
        ({"train_weights": False}, "settled_at=1"),
        ({"open_probability": 1}, r"method.open_probability=1: must be a number in \(0, 1\)"),
        ({"beta": 0}, r"method.beta=0: must be a number in \(0, inf\)"),
        ({"limit": -1}, "method.limit=-1"),
        ({"gate_lr": 0}, "method.gate_lr=0"),
        ({"gate_lr": float("nan")}, "method.gate_lr=nan"),
        ({"multiplier_lr": "1e-1 "}, "method.multiplier_lr=1e-1"),
        ({"l2": -1}, "method.l2=-1"),
        ({"controller": GAINS | {"limit": "a"}}, "method.controller.limit=a"),
        ({"families": ["heads", "ffn"], "scope": "layer"}, "ffn that go whole never fit their own share"),
        ({"families": ["layers"], "scope": "family"}, "layers that go whole never fit their own share"),
        ({"gate_schedule": "cosine"}, "inverse_root"),
        ({"gate_warmup": 1}, r"in \[0, 1\)"),
        ({"gate_schedule": "inverse_root"}, "must be above 0"),
        ({"controller": {"integral": 0.02}}, "must give integral, limit, proportional, quadratic"),
        ({"controller": 3}, "must give integral"),
        ({"controller": GAINS, "anti_windup": True}, "method.controller=null"),
        ({"controller": GAINS | {"limit": 0}}, "the controller's gains"),
        ({"controller": GAINS | {"integral": -1}}, "method.controller.integral=-1"),
    ],
)
def test_gates_that_cannot_be(wrong, said):
    with pytest.raises(UserError, match=said):
        check_gates(GATES | wrong)
