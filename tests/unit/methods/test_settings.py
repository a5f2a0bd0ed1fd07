"""Settings that cannot be are refused, in one sentence, before a model is loaded."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from keepfrac.errors import UserError
from keepfrac.storage.build import build_target

CONF = Path(__file__).resolve().parents[3] / "conf"
LATENCY = {"rows": 8, "dtype": "float32", "repeats": 20}
GAINS = {"proportional": 0, "integral": 0.02, "quadratic": 30, "limit": 10}
RANKS = {"families": ["heads", "ranks"]}


def made(method: str, **changed):
    """The settings of a method as its yaml has them, with some changed."""
    own = OmegaConf.load(CONF / "method" / f"{method}.yaml")
    own.pop("defaults", None)
    whole = OmegaConf.create({"keep_frac": 0.3, "seed": 0, "clip": 1.0, "method": own})
    given = OmegaConf.to_container(whole, resolve=True)["method"] | changed
    return build_target(given["_target_"]).Settings.of(given)


@pytest.mark.parametrize(
    ("method", "changed"),
    [
        ("magnitude", {"cost": "latency", "settled_at": 1}),
        ("l0", {}),
        ("l0", RANKS | {"controller": GAINS, "rank": 8, "l2": 0.05, "whiten": 4}),
        ("l0", {"families": ["neurons"], "scope": "layer", "l2": 0}),
        ("taylor", {"iterations": 1, "begin": 0.9}),
        ("taylor", {"keep_frac": 1, "heads": 6, "even": "heads"}),
        ("lora_sparse", {"schedule": "one_shot", "ramp_from": 0.5}),
        ("dsee_structured", {"score": "w_delta", "settled_at": 0}),
        ("distill_prune", {"structure": "2:4", "keep_frac": 1}),
    ],
)
def test_what_can_be_passes(method, changed):
    assert made(method, **changed).plain().items() >= changed.items()


@pytest.mark.parametrize(
    ("method", "wrong", "said"),
    [
        ("magnitude", {"cost": "watts"}, "method.cost=watts: must be one of params, macs, latency"),
        ("magnitude", {"length": 0}, "method.length=0: must be a whole number >= 1"),
        ("magnitude", {"latency": {"rows": 8}}, r"of rows \(.*\), dtype \(.*\), repeats \(.*\), and of nothing else"),
        ("magnitude", {"latency": LATENCY | {"rows": 0}}, r"method.latency=.*rows \(a whole number >= 1\)"),
        ("magnitude", {"latency": LATENCY | {"repeats": 1.5}}, r"method.latency=.*repeats \(a whole number >= 1\)"),
        ("magnitude", {"latency": LATENCY | {"dtype": "int8"}}, "float32, bfloat16, float16"),
        ("magnitude", {"scope": "model"}, "method.scope=model: must be one of global, family, layer"),
        ("magnitude", {"align": None}, "method.align=null: must be a mapping of heads, neurons, ranks"),
        ("magnitude", {"align": {"heads": 0}}, "method.align=.*each a whole number >= 1"),
        ("magnitude", {"floor": {"rows": 1}}, "method.floor=.*: must be a mapping of heads, neurons, ranks"),
        ("magnitude", {"floor": {"heads": 0.5}}, "method.floor=.*each a whole number >= 1"),
        ("magnitude", {"settled_at": -0.1}, r"method.settled_at=-0.1: must be a number in \[0, 1\]"),
        ("magnitude", {"settled_at": 1.1}, r"method.settled_at=1.1: must be a number in \[0, 1\]"),
        ("magnitude", {"settled_at": "late"}, r"method.settled_at=late: must be a number in \[0, 1\]"),
        ("magnitude", {"settled_at": True}, r"method.settled_at=true: must be a number in \[0, 1\]"),
        ("magnitude", {"allow_empty": "yes"}, "method.allow_empty=yes: must be true or false"),
        ("l0", {"families": "heads"}, "method.families=heads: must be a list"),
        ("l0", {"families": []}, "must be a list of some of heads, neurons"),
        ("l0", {"families": ["rows"]}, "must be a list of some of heads, neurons"),
        ("l0", {"cost": "latency"}, "heads and neurons only"),
        ("l0", {"rank": 0}, "method.rank=0: must be a whole number >= 1"),
        ("l0", {"rank": 2.5}, "method.rank=2.5"),
        ("l0", {"whiten": -1}, "method.whiten=-1"),
        ("l0", {"families": ["heads"], "rank": 4}, "families with ranks"),
        ("l0", {"families": ["heads"], "keep_factors": True}, "families with ranks"),
        ("l0", {"prefinetune": 0.5}, "method.prefinetune=0.5: must rise"),
        ("l0", {"target_warmup": 0.7}, "method.target_warmup=0.7: must rise"),
        ("l0", {"prefinetune": "early"}, "method.prefinetune=early"),
        ("l0", {"train_weights": False}, "settled_at=1"),
        ("l0", {"open_probability": 1}, r"method.open_probability=1: must be a number in \(0, 1\)"),
        ("l0", {"beta": 0}, r"method.beta=0: must be a number in \(0, inf\)"),
        ("l0", {"limit": -1}, "method.limit=-1"),
        ("l0", {"gate_lr": 0}, "method.gate_lr=0"),
        ("l0", {"gate_lr": float("nan")}, "method.gate_lr=nan"),
        ("l0", {"multiplier_lr": "1e-1 "}, "method.multiplier_lr=1e-1"),
        ("l0", {"l2": -1}, "method.l2=-1"),
        ("l0", {"families": ["heads", "ffn"], "scope": "layer"}, "ffn that go whole never fit their own share"),
        ("l0", {"families": ["layers"], "scope": "family"}, "layers that go whole never fit their own share"),
        ("l0", {"gate_schedule": "cosine"}, "inverse_root"),
        ("l0", {"gate_warmup": 1}, r"in \[0, 1\)"),
        ("l0", {"gate_warmup": -0.1}, r"in \[0, 1\)"),
        ("l0", {"gate_schedule": "inverse_root"}, "must be above 0"),
        ("l0", {"controller": GAINS | {"limit": "a"}}, r"method.controller=.*limit \(a number in \(0, inf\)\)"),
        ("l0", {"controller": GAINS | {"limit": 0}}, r"method.controller=.*limit \(a number in \(0, inf\)\)"),
        ("l0", {"controller": GAINS | {"integral": -1}}, r"method.controller=.*integral \(a number in \[0, inf\)\)"),
        ("l0", {"controller": {"integral": 0.02}}, "of proportional .* quadratic .*, and of nothing else, or null"),
        ("l0", {"controller": 3}, "method.controller=3: must be a mapping"),
        ("l0", {"controller": GAINS, "anti_windup": True}, "method.controller=null"),
        ("layer_drop", {"order": "bottom"}, "method.order=bottom: must be one of top, alternate"),
        ("taylor", {"score_split": "test"}, "score_split=test: must be train"),
        ("taylor", {"score_split": "val"}, "score_split=val: must be train"),
        ("taylor", {"importance_from": "vibes"}, "labels, logits"),
        ("taylor", {"iterations": 0}, "iterations=0: must be a whole number"),
        ("taylor", {"begin": 0.7}, r"begin=0.7: must be in \[0, method.settled_at=0.5\]"),
        ("taylor", {"heads": 1}, "keep_frac=0.3: must be 1 with method.heads"),
        ("taylor", {"even": "layers"}, "even=layers: must be one of heads, neurons, or null"),
        ("taylor", {"even": "heads", "neurons": 8, "keep_frac": 1}, "even=heads: must be heads or neurons"),
        ("lora", {"targets": []}, r"such as \[query,value\]"),
        ("lora", {"targets": "query"}, r"such as \[query,value\]"),
        ("lora", {"merge": "often"}, "masked, dense, keep, sparse_by_construction"),
        ("lora", {"rank": 0}, "method.rank=0: must be a whole number >= 1"),
        ("lora", {"alpha": 0}, r"method.alpha=0: must be a number in \(0, inf\)"),
        ("lora", {"dropout": 1}, r"method.dropout=1: must be a number in \[0, 1\)"),
        ("lora", {"dropout": 0.1, "merge": "sparse_by_construction"}, "method.dropout=0.1: must be 0 with merge"),
        ("peft_lora", {"rank": True}, "method.rank=true: must be a whole number >= 1"),
        ("lora_sparse", {"sparse": -1}, "method.sparse=-1: must be a whole number >= 0"),
        ("lora_sparse", {"selector": "luck"}, "grebsmo"),
        ("lora_sparse", {"score": "luck"}, "w_delta"),
        ("lora_sparse", {"schedule": "linear"}, "one_shot, cubic"),
        ("lora_sparse", {"settled_at": 1}, r"method.settled_at=1: must be a number in \[0, 1\)"),
        ("lora_sparse", {"schedule": "cubic", "ramp_from": 0.5}, "falls from the one to the other"),
        ("dsee_structured", {"settled_at": 0}, "above 0 with score=l1"),
        ("dsee_structured", {"keep_frac": 1, "neurons_keep_frac": 0.5}, "method.neurons_keep_frac=0.5: must be null"),
        ("dsee_structured", {"neurons_keep_frac": 0}, r"method.neurons_keep_frac=0: must be a number in \(0, 1\]"),
        ("dsee_structured", {"merge": "sparse_by_construction"}, "must be one of masked, dense, keep"),
        ("dsee_structured", {"scope": "family"}, "must be one of layer, global"),
        ("distill_prune", {"structure": "2:4", "keep_frac": 0.05}, "keep_frac=0.05: structure=2:4 keeps 0.5"),
        ("distill_prune", {"structure": "3:4"}, "element, 2:4, 4:8, block"),
        ("distill_prune", {"scope": "layer"}, "uniform, global"),
        ("distill_prune", {"score": "size"}, "magnitude, movement, fisher"),
        ("distill_prune", {"decay": 1}, r"method.decay=1: must be a number in \[0, 1\)"),
        ("distill_prune", {"floor": 1.5}, r"method.floor=1.5: must be a number in \[0, 1\]"),
        ("distill_prune", {"regrow": 1}, r"regrow=1: must be a number in \[0, 1\)"),
        ("distill_prune", {"updates": 0}, "method.updates=0: must be a whole number >= 1"),
        ("distill_prune", {"warm_up": 0.8}, "warm_up=0.8, cool_down=0.3"),
        ("distill_prune", {"warm_up": 0.5, "cool_down": 0.5}, "warm_up=0.5, cool_down=0.5"),
        ("distill_prune", {"warm_up": -0.1}, r"method.warm_up=-0.1: must be a number in \[0, 1\)"),
        ("distill_prune", {"cool_down": -0.1}, r"method.cool_down=-0.1: must be a number in \[0, 1\)"),
        ("sparsebert", {"head": "gelu"}, "relu, own"),
        ("sparsebert", {"updates": 0}, "method.updates=0: must be a whole number >= 1"),
        ("vocab", {"min_count": 0}, "min_count=0: must be a whole number"),
        ("vocab", {"characters": 7}, "characters=7: must be true or false"),
        ("vocab", {"keep_frac": 0.5}, "method.keep_frac=0.5: must be 1"),
        ("norm", {"sites": ["linears"]}, "method.sites=.*: must be a list of some of linear, attention"),
        ("norm", {"unit": "rows"}, "method.unit=rows: must be one of column, token, block, element"),
        ("norm", {"rule": "shifted_relu"}, "shifted_relu selects elements: use unit=element"),
        ("late", {"budget": 0}, r"method.budget=0: must be a number in \(0, 1\], or null"),
        ("late", {"keep_frac": 1.5}, r"method.keep_frac=1.5: must be a number in \(0, 1\]"),
        ("late", {"keep_frac": "0.3"}, "method.keep_frac=0.3: must be a number"),
        ("late", {"store": "4bit"}, "method.store=4bit"),
        ("late", {"context": "no"}, "method.context=no"),
        ("late", {"skip_zero_rows": 1}, "method.skip_zero_rows=1"),
        ("late", {"kernels": "cuda"}, "method.kernels=cuda"),
        ("late", {"rows": "top"}, "method.rows=top: must be one of wta, grad, random"),
        ("nosp", {"keep_frac": 0}, r"method.keep_frac=0: must be a number in \(0, 1\]"),
        ("nosp", {"keepfrac": 1}, r"method.keepfrac: no such key; did you mean keep_frac\?"),
    ],
)
def test_what_cannot_be(method, wrong, said):
    wrong = RANKS | wrong if method == "l0" else wrong
    with pytest.raises(UserError, match=said) as caught:
        made(method, **wrong)
    assert "\n" not in str(caught.value)
