"""`backward=late` beneath other methods, in whole runs: pruning, low-rank updates, a teacher; and what it refuses."""

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from keepfrac.errors import UserError
from keepfrac.models.cut import counts_of
from keepfrac.models.load import load_body
from keepfrac.prune.masks import Masks, top_mask
from keepfrac.run import identity
from keepfrac.run.run import run
from keepfrac.run.sites import sites
from tests.runs import weights_of

LATE = ("backward=late", "model.dropout=0.1")
GATES = ("method.prefinetune=0.2", "method.target_warmup=0.5", "method.settled_at=0.6")
PRE_NORM = ("model.config.model_type=roberta-prelayernorm", "+model.config.pad_token_id=0")


@pytest.mark.parametrize(
    ("overrides", "most"),
    [
        (("method=nosp",), 0.6),
        (("method=l0", "keep_frac=0.4", *GATES), 0.6),
        (("method=magnitude", "keep_frac=0.4"), 0.6),
        (("method=gradual_magnitude", "keep_frac=0.4"), 0.6),
        (("method=lora", "method.rank=4"), 0.6),
        (("method=lora_sparse", "keep_frac=0.5", "method.rank=4", "method.score=w_delta"), 0.6),
        (("method=dsee_structured", "keep_frac=0.5", "method.rank=4"), 0.6),
        (("method=checkpoint",), 0.3),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_beneath_another_method(composed, overrides, most):
    cfg = composed(*overrides, *LATE, "steps=12")
    found = run(cfg)
    kept, cost = found["kept"], found["cost"]
    assert kept["backward_asked"] == 0.3 and 0 < kept["backward_achieved"] < 0.4
    assert cost["saved_bytes"] < most * cost["saved_bytes_dense"]
    plain = AutoModelForSequenceClassification.from_pretrained(
        identity.cell(cfg).folder / "model", trust_remote_code=False
    )
    assert not any("Late" in type(module).__name__ for module in plain.modules())


@pytest.mark.parametrize(
    ("overrides", "achieved"),
    [
        (("method=l0", "keep_frac=0.4", *GATES, "backward=norm"), 0.3),
        (("method=nosp", "backward=wta", "backward.gradient_norms=true"), 0.3),
        (("method=magnitude", "keep_frac=0.4", "backward=recompute_gelu"), 1.0),
        (("method=lora", "method.rank=4", "backward=checkpoint"), 1.0),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, tuple) else "",
)
def test_any_backward_beneath_any_method(composed, overrides, achieved):
    cfg = composed(*overrides, "steps=12", "model.dropout=0.1")
    found = run(cfg)
    kept, cost = found["kept"], found["cost"]
    assert kept["backward_asked"] == achieved and kept["backward_achieved"] == pytest.approx(achieved, abs=0.05)
    assert cost["saved_bytes"] != cost["saved_bytes_dense"]


def test_beneath_dense_fine_tuning_it_is_the_preset(composed):
    """`method=norm` and `method=nosp backward=norm` leave the same weights."""
    presets = composed("method=norm", "keep_frac=0.4", "steps=6", "name=preset")
    beneath = composed("method=nosp", "backward=norm", "backward.keep_frac=0.4", "steps=6", "name=beneath")
    for cfg in (presets, beneath):
        run(cfg)
    one, other = weights_of(presets), weights_of(beneath)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_low_rank_updates_need_a_backward_that_knows_them(composed):
    with pytest.raises(UserError, match="AdaptedLinear, not an"):
        run(composed("method=lora", "method.rank=4", "backward=norm", "steps=2"))


def test_stored_exactly_it_trains_as_the_method_does(composed):
    """With gates, all rows and nothing rounded: the same losses, until rounding has grown."""
    losses = []
    for name, more in (("own", ()), ("late", ("backward=late", "backward.keep_frac=1", "backward.store=exact"))):
        cfg = composed(
            "method=l0", "keep_frac=0.4", "method.prefinetune=0", *GATES[1:], "model.dropout=0",
            "model.attention_dropout=0", "steps=10", "lr=1e-4", f"name={name}", *more,
        )  # fmt: skip
        run(cfg)
        lines = (identity.cell(cfg).folder / "metrics.csv").read_text().splitlines()
        losses.append([float(line.split(",")[2]) for line in lines if ",val/loss," in line])
    assert losses[0] == pytest.approx(losses[1], abs=2e-4) and losses[0]


@pytest.mark.parametrize("recipe", ["hidden", "logits"])
def test_under_a_teacher(composed, teacher, recipe):
    cfg = composed(
        "method=distill_prune", "keep_frac=0.4", f"distill={recipe}", f"distill.teacher={teacher}", *LATE, "steps=12"
    )
    found = run(cfg)
    assert found["teacher"]["scores"]["val/accuracy"] > 0.8
    assert found["kept"]["achieved"] == pytest.approx(0.4, abs=0.01)
    assert 0 < found["kept"]["backward_achieved"] < 0.4


@pytest.mark.parametrize("method", [("method=late",), ("method=nosp", "backward=late")])
def test_attention_scores_are_refused_by_name_of_what_to_choose(composed, teacher, method):
    cfg = composed(*method, "distill=tinybert", f"distill.teacher={teacher}", "steps=2")
    with pytest.raises(UserError, match="distill=hidden"):
        run(cfg)


def test_identities_of_finished_cells_stay(composed):
    settings = identity.plain(composed("method=nosp"))
    older = {key: value for key, value in settings.items() if key != "backward"}
    assert settings["backward"] == {"name": "none"}
    assert identity.identify(settings) == identity.identify(older)
    assert identity.cell(settings).label == identity.cell(older).label
    assert identity.cell(composed("method=lora", "backward=late")).label.startswith("lora+late_")
    assert identity.identify(identity.plain(composed("method=nosp", "backward=late"))) != identity.identify(older)


def test_a_cut_and_masked_model_recovers(composed):
    """Uneven layers of an l0 cell, then single weights of it masked: sizes and zeros stay."""
    first = composed("method=l0", "keep_frac=0.3", "method.prefinetune=0", *GATES[1:], "steps=8", "name=first")
    run(first)
    folder, weights = identity.cell(first).folder, weights_of(first)
    named = [name for name in weights if "encoder.layer" in name and weights[name].ndim == 2]
    masks = {name: top_mask(weights[name].abs(), weights[name].numel() // 2) for name in named}
    Masks(masks).save(folder / "model")
    cfg = composed("method=late", "keep_frac=0.5", "model=from_run", f"model.run={folder}", "steps=6")
    found = run(cfg)
    after = weights_of(cfg)
    assert 0 < found["kept"]["achieved"] < 0.6
    assert counts_of(load_body(identity.cell(cfg).folder / "model")) == counts_of(load_body(folder / "model"))
    assert masks and all((after[name][~mask] == 0).all() for name, mask in masks.items())
    assert any(not torch.equal(after[name], weights[name]) for name in masks)


def test_a_model_with_the_layer_norm_in_front(composed):
    cfg = composed("method=late", *PRE_NORM, "steps=12", "model.dropout=0.1")
    found = run(cfg)
    assert 0.2 < found["kept"]["achieved"] < 0.4
    assert found["cost"]["saved_bytes"] < 0.7 * found["cost"]["saved_bytes_dense"]
    found = run(composed("method=l0", *PRE_NORM, "steps=12", *GATES, "keep_frac=0.5", "backward=late"))
    assert found["kept"]["achieved"] == pytest.approx(0.5, abs=0.05)


def test_sites_beneath_a_method(composed):
    cfg = composed("method=nosp", *LATE, "steps=2", "probe_steps=0")
    run(cfg)
    found = sites(identity.cell(cfg).folder)
    assert len(found["sites"]) == 4 and found["total"]["relative_error_dx"] < 0.05
