"""Structured pruning from the command line's settings to the delivered model."""

import json
import re
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from keepfrac.errors import UserError
from keepfrac.methods.l0 import L0Prune
from keepfrac.models.cut import counts_of
from keepfrac.models.export import ONNX_PACKAGES
from keepfrac.run import identity
from keepfrac.run.run import run
from keepfrac.storage import results
from keepfrac.tasks.base import Task
from keepfrac.training.structured_pruning import Pruner
from tests.runs import figures

METHODS = ("l0", "l0_factorized", "magnitude", "random_prune", "layer_drop")
FAST = ("method.gate_lr=2.0", "method.multiplier_lr=2.0", "method.prefinetune=0.1", "probe_steps=0")


def settings(method: str) -> tuple[str, ...]:
    return (f"method={method}", *(FAST if method.startswith("l0") else ("probe_steps=0",)))


@pytest.mark.parametrize("method", METHODS)
def test_what_is_asked_is_what_the_delivered_model_has(composed, method):
    cfg = composed(*settings(method), "keep_frac=0.5")
    found = run(cfg)
    folder = identity.cell(cfg).folder
    assert found["kept"]["unit"] == "weights of the encoder's linears"
    assert 0.45 < found["kept"]["achieved"] <= 0.5
    assert found["size"]["params"] < found["size"]["params_dense"]
    net = AutoModelForSequenceClassification.from_pretrained(folder / "model")
    assert net.config.model_type == "pruned_bert"
    lines = dict(line.split(": ") for line in (folder / "info.txt").read_text().splitlines())
    assert float(lines["encoder_linear_weights_keep_frac"]) == pytest.approx(found["kept"]["achieved"], abs=1e-6)
    assert int(lines["model_params_kept"]) == sum(p.numel() for p in net.parameters()) == found["size"]["params"]
    assert int(lines["model_params_dense"]) == found["size"]["params_dense"]


def test_the_constraint_is_reached_and_its_path_is_logged(composed):
    cfg = composed(
        "method=l0", "keep_frac=0.4", "steps=120", "eval_every=60", "probe_steps=0", "method.gate_lr=0.3",
        "method.multiplier_lr=0.5", "method.families=[heads,neurons]", "method.settled_at=0.9",
    )  # fmt: skip
    run(cfg)
    path = figures(identity.cell(cfg).folder)
    assert path["kept/target"][0] > 0.9 and path["kept/target"][-1] == pytest.approx(0.4)
    assert path["kept/expected"][0] > 0.9 and path["kept/expected"][-1] == pytest.approx(0.4, abs=0.06)
    assert max(path["loss/lambda1"]) > 0 and path["loss/lambda2"][-1] > 0
    assert path["loss/lr_gates"][1:-2] == pytest.approx([0.3] * len(path["loss/lr_gates"][1:-2]))
    assert path["loss/lr_gates"][0] == path["loss/lr_multipliers"][-1] == 0  # before prefinetune ends, when settled
    assert path["kept/achieved"][-1] <= 0.4


def test_the_target_of_a_model_that_was_cut_begins_at_what_it_has(composed):
    """From 1 on the multipliers would long push open what is to be shut."""
    cfg = composed(*settings("magnitude"), "keep_frac=0.5", "epochs=0")
    has = run(cfg)["kept"]["achieved"]
    more = ("model=from_run", f"model.run={identity.cell(cfg).folder}", "keep_frac=0.3", "name=again")
    late = ("method.prefinetune=0.5", "method.target_warmup=0.8", "method.settled_at=0.9")
    again = composed("method=l0", *more, *late, "steps=20", "probe_steps=0")
    found = run(again)
    assert figures(identity.cell(again).folder)["kept/target"] == pytest.approx([has, 0.3])
    assert found["kept"]["achieved"] <= 0.3


def test_a_cut_model_cannot_grow_again(composed):
    cfg = composed(*settings("magnitude"), "keep_frac=0.5", "steps=2")
    run(cfg)
    chain = (*settings("random_prune"), "model=from_run", f"model.run={identity.cell(cfg).folder}", "steps=2")
    with pytest.raises(UserError, match=r"it can be 0\.\d+ to 0\.[45]\d+"):
        run(composed(*chain, "keep_frac=0.8"))
    found = run(composed(*chain, "keep_frac=0.3", "name=again"))
    assert 0.28 < found["kept"]["achieved"] <= 0.3  # of the dense original, not of what the first left
    assert (
        found["size"]["params_dense"]
        == json.loads((identity.cell(cfg).folder / "results.json").read_text())["size"]["params_dense"]
    )


@pytest.mark.parametrize(
    "first",
    [
        ("magnitude",),
        ("l0", "method.families=[attention,ffn]"),  # whole sub-layers go
        ("l0_factorized",),
    ],
    ids=lambda first: first[0],
)
def test_late_rows_go_on_from_a_cut_model(composed, first):
    cfg = composed(*settings(first[0]), *first[1:], "keep_frac=0.5", "steps=4")
    run(cfg)
    before = identity.cell(cfg).folder
    late = composed("method=late", "model=from_run", f"model.run={before}", "steps=2", "probe_steps=0")
    run(late)
    was, now = (
        AutoModelForSequenceClassification.from_pretrained(folder / "model")
        for folder in (before, identity.cell(late).folder)
    )
    assert counts_of(now) == counts_of(was)
    assert any(not torch.equal(a, b) for a, b in zip(was.parameters(), now.parameters(), strict=True))


def test_latency_is_held_against_the_dense_original(composed, monkeypatch):
    cfg = composed(*settings("magnitude"), "keep_frac=0.5", "steps=2")
    run(cfg)
    timed = {}

    def forward_seconds(nets, times):
        timed.update({name: sum(p.numel() for p in net.parameters()) for name, net in nets.items()})
        return dict.fromkeys(nets, 1.0)

    monkeypatch.setattr("keepfrac.measurement.costs.forward_seconds", forward_seconds)
    again = run(
        composed("method=nosp", "model=from_run", f"model.run={identity.cell(cfg).folder}", "steps=2", "probe_steps=1")
    )
    size = again["size"]
    assert timed == {"latency_seconds": size["params"], "latency_seconds_dense": size["params_dense"]}
    assert size["params"] < size["params_dense"]


def test_inputs_go_to_where_the_model_is():
    batch = {"input_ids": torch.ones(1, 2), "labels": torch.ones(1)}
    task = SimpleNamespace(inputs=lambda batch: {"input_ids": batch["input_ids"]}, to_device=Task.to_device)
    found = Pruner._inputs(SimpleNamespace(net=torch.nn.Linear(2, 2, device="meta"), task=task), batch)
    assert {name: tensor.device.type for name, tensor in found.items()} == {"input_ids": "meta"}


def test_what_measures_activations_sees_training_rows_alone(composed, monkeypatch):
    def rows(batches):
        return {tuple(row[row != 0].tolist()) for batch in batches for row in batch["input_ids"]}

    seen, measure = [], L0Prune._moments

    def spy(method, paths, batches):
        batches, task = list(batches), method.task
        seen.append((rows(batches), rows(task.train_dataloader())))
        seen.append((rows(batches), rows([*task.val_dataloader(), *task.test_dataloader()])))
        return measure(method, paths, batches)

    monkeypatch.setattr(L0Prune, "_moments", spy)
    run(composed(*settings("l0_factorized"), "keep_frac=0.5", "method.whiten=3", "steps=4"))
    (given, train), (_, others) = seen
    assert given and given <= train and not given & (others - train)


def test_the_path_and_the_settings_are_in_tensorboard(composed):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    scores = ("accuracy", "precision", "recall", "f1")
    cfg = composed(
        *settings("l0"), "keep_frac=0.5", "logger=tensorboard", "steps=24", "eval_every=8",
        f"task.metrics=[{','.join(scores)}]", "task.positive=good",
    )  # fmt: skip
    found = run(cfg)
    events = accumulator.EventAccumulator(str(identity.cell(cfg).folder / "tensorboard"))
    events.Reload()
    path = figures(identity.cell(cfg).folder)
    lagrangian = ("lagrangian", "lambda1", "lambda2", "lr_gates", "lr_multipliers", "lr_weights", "task")
    for name in ("kept/target", "kept/expected", *(f"loss/{one}" for one in lagrangian)):
        assert [event.value for event in events.Scalars(name)] == pytest.approx(path[name]), name
    assert {f"val/{name}" for name in scores} <= set(events.Tags()["scalars"])
    assert events.Scalars("final/kept/achieved")[0].value == pytest.approx(found["kept"]["achieved"])
    (page,) = (events.summary_metadata["_hparams_/session_start_info"].plugin_data.content,)
    assert b"method.multiplier_lr" in page and b"l0" in page


def test_the_gates_alone_can_be_trained(composed):
    cfg = composed(
        *settings("l0_factorized"), "method.train_weights=false", "method.settled_at=1", "method.rank=64",
        "method.whiten=0", "keep_frac=0.4",
    )  # fmt: skip
    found = run(cfg)
    assert found["kept"]["achieved"] <= 0.4


def test_factors_can_be_left_where_one_linear_would_be_smaller(composed):
    shared = ("method.rank=100", "method.whiten=0", "method.align.ranks=1", "keep_frac=0.9", "steps=8")
    merged = run(composed(*settings("l0_factorized"), *shared, "name=merged"))
    cfg = composed(*settings("l0_factorized"), *shared, "method.keep_factors=true", "name=left")
    left = run(cfg)
    net = AutoModelForSequenceClassification.from_pretrained(identity.cell(cfg).folder / "model")
    factored = [m for m in net.modules() if type(m).__name__ == "LowRankLinear"]
    assert len(factored) == 12 and any(
        m.p.out_features * (m.in_features + m.out_features) > m.in_features * m.out_features for m in factored
    )
    own = sum(m.p.weight.numel() + m.q.weight.numel() for m in factored)
    assert left["kept"]["achieved"] == pytest.approx(own / (2 * (4 * 128 * 128 + 2 * 128 * 512)))
    assert left["kept"]["achieved"] <= 0.9 and merged["kept"]["achieved"] <= 0.9
    whole = identity.cell(composed(*settings("l0_factorized"), *shared, "name=merged")).folder
    assert len(AutoModelForSequenceClassification.from_pretrained(whole / "model").config.low_rank or {}) < 12


@pytest.mark.parametrize(("cost", "unit"), [("macs", "MACs of the encoder at 16 tokens"), ("latency", "ms of the")])
def test_other_costs(composed, cost, unit):
    cfg = composed(
        *settings("l0"), f"method.cost={cost}", "method.length=16", "method.latency.repeats=1", "keep_frac=0.5"
    )
    found = run(cfg)
    assert found["kept"]["achieved"] <= 0.5 and found["kept"]["unit"].startswith(unit)


def test_pruning_before_training_needs_no_training(composed):
    found = run(composed(*settings("magnitude"), "keep_frac=0.5", "epochs=0"))
    assert found["kept"]["achieved"] <= 0.5 and found["size"]["params"] < found["size"]["params_dense"]


NO_ONNX = [name for name in ONNX_PACKAGES if find_spec(name) is None]
ONNX = pytest.param("onnx", marks=pytest.mark.skipif(bool(NO_ONNX), reason=f"not installed: {NO_ONNX}"))


@pytest.mark.parametrize("form", ["stock_padded", "torch_export", ONNX])
def test_the_other_form_is_written(composed, form):
    cfg = composed(*settings("magnitude"), "keep_frac=0.5", "epochs=0", f"export={form}")
    found = run(cfg)
    path = identity.cell(cfg).folder / found["export"]["path"]
    assert path.name == form and any(path.iterdir())


def test_a_form_that_cannot_hold_the_model_is_refused_and_the_model_is_there(composed):
    cfg = composed(*settings("magnitude"), "keep_frac=0.5", "epochs=0", "export=stock_uniform")
    folder = identity.cell(cfg).folder
    hint = rf"stock_padded.*epochs=0 task=csv model=from_run model.run={folder}"
    for _ in range(2):  # the second time it is done already
        with pytest.raises(UserError, match=rf"done and scored, without export=stock_uniform: .*{hint}"):
            run(cfg)
        found = results.read(folder)
        assert found is not None and found["status"] == "done" and found["scores"]["test/accuracy"] >= 0
        assert re.search(hint, found["export"]["error"]) and "path" not in found["export"]
    assert "WARNING export=stock_uniform was not written" in (folder / "run.log").read_text()
    again = composed("epochs=0", "model=from_run", f"model.run={folder}", "export=stock_padded", "probe_steps=0")
    path = identity.cell(again).folder / run(again)["export"]["path"]
    net = AutoModelForSequenceClassification.from_pretrained(path)
    assert len(AutoTokenizer.from_pretrained(path)) == net.config.vocab_size


def test_whole_layers_go_where_they_alone_have_gates(composed):
    cfg = composed(*settings("l0"), "method.families=[layers]", "method.drop_empty=true", "keep_frac=0.5", "steps=12")
    found = run(cfg)
    net = AutoModelForSequenceClassification.from_pretrained(identity.cell(cfg).folder / "model")
    assert found["kept"]["achieved"] == 0.5 and net.config.num_hidden_layers == 1


def test_gradients_are_not_compared_with_dense_ones_of_other_shapes(composed):
    with pytest.raises(UserError, match="fidelity_every=null"):
        run(composed(*settings("magnitude"), "keep_frac=0.5", "fidelity_every=2", "steps=4"))
