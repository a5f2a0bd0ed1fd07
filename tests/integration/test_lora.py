"""The adapter methods from the command line's settings to the delivered model."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from keepfrac.adapters.surgery import adapted
from keepfrac.errors import UserError
from keepfrac.models.load import reload
from keepfrac.prune.masks import FILE
from keepfrac.run import identity
from keepfrac.run.run import run
from tests.runs import weights_of

MERGES = ("masked", "dense", "keep", "sparse_by_construction")
SMALL = ("method.rank=4", "method.alpha=8")
SPARSE = (*SMALL, "method=lora_sparse", "method.sparse=16", "keep_frac=0.5", "probe_steps=0")


def test_lora_delivers_a_plain_model_of_the_scores_it_had(composed):
    cfg = composed("method=lora", *SMALL)
    found = run(cfg)
    kept, folder = found["kept"], identity.cell(cfg).folder / "model"
    assert kept["unmerged_test_accuracy"] == found["scores"]["test/accuracy"]
    # 2 layers, query and value of 128 x 128, rank 4; a classifier of 2 x 128 + 2
    assert kept["trained_params"] == 2 * 2 * 2 * 4 * 128 + 258
    assert kept["gradient_bytes"] == 4 * kept["trained_params"]
    assert kept["optimizer_bytes"] == pytest.approx(8 * kept["trained_params"], rel=0.01)  # and a step counter each
    net, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not info["unexpected_keys"] and not adapted(net)


@pytest.mark.parametrize("merge", MERGES)
def test_every_merge(composed, merge):
    cfg = composed(*SPARSE, f"method.merge={merge}", "steps=12")
    found = run(cfg)
    folder, kept = identity.cell(cfg).folder / "model", found["kept"]
    weights, masks = load_file(folder / "model.safetensors"), load_file(folder / FILE)
    assert all(torch.all(weights[name][~mask] == 0) for name, mask in masks.items())
    updated = 2 / 12  # query and value, of six linears of which two are four times as large
    assert kept["achieved"] == pytest.approx(0.5 + (0.5 * updated if merge == "dense" else 0), abs=1e-6)
    assert len(masks) == (8 if merge == "dense" else 12)
    net = reload(folder, "sequence_classification", "sdpa")
    assert bool(adapted(net)) == (merge == "keep")
    if merge in ("dense", "sparse_by_construction"):
        assert kept["unmerged_test_accuracy"] == found["scores"]["test/accuracy"]


def test_a_kept_model_goes_on_and_is_merged_later(composed):
    first = composed(*SPARSE, "keep_frac=1", "method.merge=keep", "steps=8", "name=first")
    before = run(first)
    from_run = ("model=from_run", f"model.run={identity.cell(first).folder}")
    merged = run(composed("method=lora", *SMALL, *from_run, "epochs=0", "name=merged"))
    assert merged["scores"] == pytest.approx(before["scores"], abs=1e-5)
    assert merged["size"]["params"] == before["size"]["params"] - 4 * (2 * 4 * 128 + 16)
    pruned = composed(*SPARSE, *from_run, "method.settled_at=0", "steps=4", "name=pruned")
    assert run(pruned)["kept"]["achieved"] == pytest.approx(0.5, abs=1e-6)
    with pytest.raises(UserError, match="rank 4 on 4 linears"):
        run(composed("method=lora", *from_run, "epochs=0", "name=other"))


@pytest.mark.parametrize("method", ["lora_sparse", "nosp"])
def test_zeros_stay_in_a_repair_by_any_method(composed, method):
    first = composed(*SPARSE, "steps=6", "name=first")
    run(first)
    chain = (
        f"method={method}",
        "model=from_run",
        f"model.run={identity.cell(first).folder}",
        "steps=3",
        "probe_steps=0",
    )
    again = composed(*chain, *(SMALL if method != "nosp" else ()), "keep_frac=0.5", "name=again")
    run(again)
    folder = identity.cell(again).folder / "model"
    weights, masks = load_file(folder / "model.safetensors"), load_file(folder / FILE)
    assert sum(int(m.sum()) for m in masks.values()) * 2 == sum(m.numel() for m in masks.values())
    assert all(torch.all(weights[name][~mask] == 0) for name, mask in masks.items())


@pytest.mark.parametrize("method", ["lora", "lora_sparse"])
def test_a_model_cut_by_l0_is_tuned(composed, method):
    fast = ("method.gate_lr=2.0", "method.multiplier_lr=2.0", "probe_steps=0", "name=cut")
    cut = composed("method=l0", "keep_frac=0.5", "method.align.neurons=1", *fast)
    run(cut)
    cfg = composed(
        f"method={method}", *SMALL, "model=from_run", f"model.run={identity.cell(cut).folder}", "steps=6",
        "method.targets=[query,value,ffn_in,ffn_out]", "keep_frac=0.6",
    )  # fmt: skip
    found = run(cfg)
    net = AutoModelForSequenceClassification.from_pretrained(identity.cell(cfg).folder / "model")
    assert net.config.model_type == "pruned_bert"
    assert found["kept"]["achieved"] == pytest.approx(0.6 if method == "lora_sparse" else 1.0, abs=1e-5)


def test_peft_lora_trains_as_many_and_delivers_a_plain_model(composed):
    pytest.importorskip("peft")
    ours = run(composed("method=lora", *SMALL, "steps=3", "name=ours", "probe_steps=0"))
    cfg = composed("method=peft_lora", *SMALL, "name=theirs")
    theirs = run(cfg)
    assert theirs["kept"]["trained_params"] == ours["kept"]["trained_params"]
    assert theirs["size"] == ours["size"]
    assert theirs["kept"]["unmerged_test_accuracy"] == theirs["scores"]["test/accuracy"]
    _, info = AutoModelForSequenceClassification.from_pretrained(
        identity.cell(cfg).folder / "model", output_loading_info=True
    )
    assert not info["unexpected_keys"] and not info["missing_keys"]


def test_updates_go_out_to_peft_and_come_in_again(composed):
    first = composed(
        "method=lora", *SMALL, "method.merge=keep", "export=peft", "steps=4", "probe_steps=0", "name=first"
    )
    found = run(first)
    folder = identity.cell(first).folder
    assert found["export"]["path"] == "export/peft"
    again = composed(
        "method=lora", *SMALL, "model=from_run", f"model.run={folder}", "epochs=0", "name=again", "method.merge=keep"
    )
    assert run(again)["scores"] == found["scores"]
    started = composed("method=lora", *SMALL, f"method.adapter={folder}/export/peft", "steps=1", "name=started")
    assert run(started)["status"] == "done"
    weights = load_file(folder / "model" / "model.safetensors")
    assert any(name.endswith(".updates.query.u") and tensor.any() for name, tensor in weights.items())
    with pytest.raises(UserError, match=r"export=peft needs method\.merge=keep"):
        run(composed("method=lora", *SMALL, "export=peft"))


def test_every_selector_from_the_command_line(composed):
    chosen = {}
    for selector in ("gradient", "svd_residual", "magnitude"):
        cfg = composed(*SPARSE, "keep_frac=1", f"method.selector={selector}", "method.merge=keep", "steps=1")
        run(cfg)
        chosen[selector] = weights_of(cfg)["bert.encoder.layer.0.attention.self.query.updates.query.positions"]
    assert all(len(positions) == 16 for positions in chosen.values())
    assert not torch.equal(chosen["gradient"], chosen["magnitude"])


@pytest.mark.parametrize("method", ["lora_sparse", "dsee_structured"])
def test_a_decoder_with_fused_linears(composed, method):
    sparse = SPARSE if method == "lora_sparse" else DSEE
    cfg = composed(
        *sparse, "model=gpt2_tiny", "steps=5", "method.coefficient_lr=0.1" if method != "lora_sparse" else "lr=1e-3"
    )
    found = run(cfg)
    assert found["kept"]["achieved"] == pytest.approx(0.5, abs=1e-5)
    assert found["kept"]["trained_params"] > 0


DSEE = ("method=dsee_structured", *SMALL, "method.sparse=16", "keep_frac=0.5", "probe_steps=0")
ALL = "method.targets=[query,key,value,attention_output,ffn_in,ffn_out]"


@pytest.mark.parametrize(
    "overrides",
    [
        ("method.score=l1", "method.scope=global", "method.coefficient_lr=0.1"),
        ("method.score=l1", ALL, "method.merge=keep", "method.coefficient_lr=0.1"),
        ("method.score=delta", ALL, "method.neurons_keep_frac=0.6"),
        ("method.score=w_delta", "method.settled_at=0", "method.merge=dense"),
    ],
)
def test_heads_and_neurons_are_cut_in_exact_numbers(composed, overrides):
    cfg = composed(*DSEE, *overrides, "steps=10")
    found = run(cfg)
    kept = found["kept"]
    neurons = 307 if "method.neurons_keep_frac=0.6" in overrides else 256
    assert (sum(kept["layer_heads"]), sum(kept["layer_ffn"])) == (2, 2 * neurons)
    assert kept["asked"] == pytest.approx(kept["achieved"])
    net = reload(identity.cell(cfg).folder / "model", "sequence_classification", "sdpa")
    assert net.config.layer_heads == kept["layer_heads"] and bool(adapted(net)) == (kept["merge"] == "keep")
    if kept["merge"] != "keep":
        assert kept["unmerged_test_accuracy"] == found["scores"]["test/accuracy"]
