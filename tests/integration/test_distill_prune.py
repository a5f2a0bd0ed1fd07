"""Pruning single weights under a teacher: exact zeros in what is delivered, whatever happens on the way."""

import itertools
import json
import logging

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from keepfrac.errors import UserError
from keepfrac.models.packed import load_packed, load_state
from keepfrac.models.packed import main as restore
from keepfrac.prune.masks import FILE, num_kept
from keepfrac.run import identity
from keepfrac.run.run import run
from keepfrac.training.weight_pruning import WeightPruner
from src.measure import main as measure
from tests.runs import weights_of

QUIET = ("probe_steps=0", "keep_frac=0.2")


def masks_of(cfg) -> dict[str, torch.Tensor]:
    return load_file(identity.cell(cfg).folder / "model" / FILE)


def check_zeros(cfg, keep: float) -> None:
    """Exact counts per matrix, in the masks and in the weights; nothing else is sparse."""
    weights, masks = weights_of(cfg), masks_of(cfg)
    assert len(masks) == 12 and all(".encoder.layer." in name for name in masks)
    for name, mask in masks.items():
        assert int(mask.sum()) == num_kept(keep, mask.numel())
        assert torch.equal(weights[name] != 0, mask)
    assert all(
        (weight != 0).float().mean() > 0.9 for name, weight in weights.items() if name not in masks and weight.ndim > 1
    )


@pytest.mark.parametrize("steps", [1, 5, 30])
def test_exact_zeros_through_the_optimizer_in_bf16(composed, steps):
    cfg = composed(
        "method=distill_prune", "keep_frac=0.05", "probe_steps=0", f"steps={steps}", "hardware.precision=bf16-mixed"
    )
    found = run(cfg)
    check_zeros(cfg, 0.05)
    kept = found["kept"]
    assert kept["unit"] == "weights of the encoder's linears" and kept["of"] == "12 matrices (element, uniform)"
    assert kept["achieved"] == pytest.approx(0.05, abs=1e-4) and kept["compression_encoder"] == pytest.approx(
        20, rel=0.01
    )
    zeros = sum(int((~mask).sum()) for mask in masks_of(cfg).values())
    assert found["size"]["params"] - found["size"]["nonzeros"] >= zeros
    assert kept["compression_model"] == pytest.approx(found["size"]["params"] / (found["size"]["params"] - zeros))


def test_a_frozen_mask_does_not_move_while_weights_do(composed, teacher, monkeypatch):
    log = []
    original = WeightPruner.after_step

    def after_step(self):
        original(self)
        name, mask = next(iter(self.masks.items()))
        weight = self.net.get_parameter(name)
        moments = self.trainer.optimizers[0].state[weight]
        still = all(not moments[key][~mask].any() for key in ("exp_avg", "exp_avg_sq"))
        log.append((self.frozen, mask.clone(), weight.detach().clone(), still, not weight.grad[~mask].any()))

    monkeypatch.setattr(WeightPruner, "after_step", after_step)
    cfg = composed("method=distill_prune", f"distill.teacher={teacher}", *QUIET, "steps=20", "method.cool_down=0.3")
    run(cfg)
    assert [frozen for frozen, *_ in log] == [False] * 13 + [True] * 7
    last = log[13]
    assert all(torch.equal(mask, last[1]) for _, mask, *_ in log[13:])
    assert not torch.equal(last[2], log[-1][2])
    assert all(still for *_, still, _ in log) and all(quiet for *_, quiet in log[14:])
    assert all(not (later[1] & ~before[1]).any() for before, later in itertools.pairwise(log))  # no regrowth
    check_zeros(cfg, 0.2)


@pytest.mark.parametrize(
    "overrides",
    [
        ("method.scope=global", "method.score=movement"),
        ("method.scope=global", "method.score=fisher", "method.floor=0.5"),
        ("method.structure=2:4", "keep_frac=0.5"),
        ("method.structure=block", "method.block=32"),
        ("method.regrow=0.2", "method.updates=5"),
    ],
)
def test_other_scores_and_structures(composed, overrides):
    cfg = composed("method=distill_prune", *QUIET, "steps=15", *overrides)
    found = run(cfg)
    weights, masks = weights_of(cfg), masks_of(cfg)
    keep = 0.5 if "keep_frac=0.5" in overrides else 0.2
    kept, size = sum(int(m.sum()) for m in masks.values()), sum(m.numel() for m in masks.values())
    block = 32 * 32 if "method.structure=block" in overrides else 1
    assert kept / size == pytest.approx(keep, abs=0.02) if block > 1 else kept == pytest.approx(keep * size, abs=6)
    assert all(not weights[name][~mask].any() for name, mask in masks.items())
    assert found["kept"]["achieved"] == kept / size


def test_sparsebert_keeps_the_last_model_and_reloads_with_its_head(composed, teacher):
    cfg = composed("method=sparsebert", *QUIET, f"distill.teacher={teacher}", "eval_every=4", "steps=16")
    found = run(cfg)
    weights, masks = weights_of(cfg), masks_of(cfg)
    assert all(torch.equal(weights[name] != 0, mask) for name, mask in masks.items())
    assert found["kept"]["achieved"] == pytest.approx(0.2, abs=1e-3)  # its last change comes before its last step
    assert found["cost"]["best_step"] == 16
    assert found["config"]["distill"]["name"] == "sparsebert"
    folder = identity.cell(cfg).folder
    assert json.loads((folder / "model" / "config.json").read_text())["model_type"] == "relu_head_bert"
    again = run(composed("epochs=0", "model=from_run", f"model.run={folder}", "probe_steps=0"))
    assert again["scores"]["val/loss"] == pytest.approx(found["scores"]["val/loss"])


def test_magnitude_without_a_teacher_is_an_arm_of_the_same_sweep(composed, teacher):
    more = (*QUIET, "steps=6")
    one = composed("method=gradual_magnitude", f"distill.teacher={teacher}", *more)
    two = composed("method=gradual_magnitude", *more)
    assert identity.cell(one).identity == identity.cell(two).identity
    own, same = run(one), composed("method=distill_prune", *more)
    assert "teacher" not in own
    run(same)
    assert all(torch.equal(weight, weights_of(same)[name]) for name, weight in weights_of(one).items())


def test_what_is_pruned_goes_on_and_comes_out_smaller(composed, caplog, capsys):
    first = composed("method=distill_prune", *QUIET, "epochs=0")  # once, by magnitude
    run(first)
    check_zeros(first, 0.2)
    folder = identity.cell(first).folder
    chain = ("method=distill_prune", "probe_steps=0", "steps=4", "model=from_run", f"model.run={folder}")
    with pytest.raises(UserError, match=r"has only 0\.2000 of these weights left"):
        run(composed(*chain, "keep_frac=0.5"))
    second = composed(*chain, "keep_frac=0.1", "export=sparse")
    found = run(second)
    check_zeros(second, 0.1)
    assert not any((masks_of(second)[name] & ~mask).any() for name, mask in masks_of(first).items())
    export = identity.cell(second).folder / found["export"]["path"]
    state, weights = load_state(export), weights_of(second)
    assert all(torch.equal(state[name].view(torch.int32), weights[name].view(torch.int32)) for name in weights)
    assert found["export"]["bytes"] < found["size"]["bytes_on_disk"]
    net = load_packed(export)
    assert all(torch.equal(weight, net.state_dict()[name]) for name, weight in weights.items())
    assert len(AutoTokenizer.from_pretrained(export)) == net.config.vocab_size
    check_ruler(identity.cell(second).folder, found, capsys)
    assert measure([str(export)]) == 1
    assert "python -m src.models.packed" in capsys.readouterr().err
    plain = export.with_name("plain")
    assert restore([str(export), str(plain)]) == 0 and measure([str(plain)]) == 0
    capsys.readouterr()
    assert len(AutoTokenizer.from_pretrained(plain)) == net.config.vocab_size
    restored = load_file(plain / FILE)
    assert all(torch.equal(restored[name], mask) for name, mask in masks_of(second).items())
    with caplog.at_level(logging.INFO):
        scored = run(
            composed(
                "epochs=0",
                "probe_steps=0",
                "model=from_run",
                f"model.run={folder}",
                "task.metrics=[accuracy,f1,acc_and_f1]",
                "task.positive=good",
            )
        )
    line = next(record.message for record in caplog.records if "eval_loss" in record.message)
    for name, key in (("acc", "accuracy"), ("f1", "f1"), ("acc_and_f1", "acc_and_f1"), ("eval_loss", "loss")):
        assert f"{name} = {scored['scores'][f'test/{key}']:.4f}" in line.partition("test:")[2]


@pytest.mark.parametrize("method", ["distill_prune", "sparsebert"])
def test_it_goes_on_at_the_share_that_is_left(composed, method):
    first = composed("method=distill_prune", "probe_steps=0", "keep_frac=0.3", "epochs=0")
    assert run(first)["kept"]["achieved"] < 0.3  # each matrix keeps a whole number
    chain = ("model=from_run", f"model.run={identity.cell(first).folder}", "steps=3", "name=again")
    run(second := composed(f"method={method}", "probe_steps=0", "keep_frac=0.3", *chain))
    check_zeros(second, 0.3)
    with pytest.raises(UserError, match=r"has only 0\.3000 of these weights left"):
        run(composed(f"method={method}", "probe_steps=0", "keep_frac=0.3005", *chain))


def check_ruler(folder, found, capsys) -> None:
    """`python -m src.measure FOLDER` counts zeros by itself, in any folder."""
    assert measure([str(folder / "model"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["sparsity"]
    assert told["matrices"] == 12 and told["matrix_nonzeros"] == 12 * num_kept(0.1, 128 * 128) - 4 * num_kept(
        0.1, 128 * 128
    ) + 4 * num_kept(0.1, 128 * 512)
    assert told["compression_matrices"] == pytest.approx(found["kept"]["compression_encoder"])
    assert told["bytes_packed"] < told["bytes_dense"] and told["macs_nonzero"] < found["size"]["macs"]
    assert all(row["keep_frac"] == pytest.approx(0.1, abs=1e-4) for row in told["rows"])
    assert measure([str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "compression_matrices" in shown and "compression_model" in shown and "0.1000" in shown
