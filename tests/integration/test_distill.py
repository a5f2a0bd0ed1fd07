"""Distillation from the command line's settings to the delivered model, for any method."""

import copy
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from keepfrac.distillation.distiller import Distiller
from keepfrac.errors import UserError
from keepfrac.run import identity
from keepfrac.run.run import run
from keepfrac.training.checkpoint_files import CHECKPOINT
from tests.runs import figures, killed_at, weights_of

QUIET = ("probe_steps=0", "steps=3")
SHAPE = {"num_hidden_layers": 3, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128}


@pytest.fixture
def changed(teacher, tmp_path):
    """A function from a change to the teacher's model and its tokenizer to the folder of the changed one."""

    def make(change):
        folder = tmp_path / "changed"
        shutil.copytree(teacher / "model", folder)
        net = BertForSequenceClassification.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        made = change(net, tokenizer)
        if made is not None:
            made.save_pretrained(folder)
        return folder

    return make


@pytest.mark.parametrize("method", ["nosp", "norm", "l0", "layer_drop", "magnitude"])
def test_any_method_learns_from_a_teacher(composed, teacher, method):
    overrides = (f"method={method}", "keep_frac=0.5", f"distill.teacher={teacher}")
    cfg = composed(*overrides, f"probe_steps={int(method == 'nosp')}")
    found = run(cfg)
    assert found["status"] == "done"
    own = json.loads((teacher / "results.json").read_text())["scores"]
    assert found["teacher"]["scores"]["val/accuracy"] == pytest.approx(own["val/accuracy"])
    path = figures(identity.cell(cfg).folder)
    assert all(value > 0 for name in ("att", "rep", "cls") for value in path[f"loss/{name}"])
    if method == "nosp":
        assert found["cost"]["step_seconds"] > 0 and path["loss/att"][1] < path["loss/att"][0]  # last: longer rows


def test_the_teacher_is_in_no_checkpoint_in_eval_and_without_gradient(composed, teacher, monkeypatch):
    seen = []
    original = Distiller._forward_teacher

    def taught(self, inputs):
        found = original(self, inputs)
        modes = {module.training for module in self.teacher.modules()}
        seen.append((modes, found.outputs.logits.requires_grad, found.scores[1].requires_grad))
        return found

    monkeypatch.setattr(Distiller, "_forward_teacher", taught)
    cfg = composed(f"distill.teacher={teacher}", "checkpoint_every=2", "probe_steps=0", "model.dropout=0.1")
    with killed_at(5):
        run(cfg)
    folder = identity.cell(cfg).folder
    state = torch.load(folder / CHECKPOINT, weights_only=True)
    net = {name for name in state["state_dict"] if name.startswith("net.")}
    rest = {name.partition(".")[0] for name in set(state["state_dict"]) - net}
    assert rest <= {"val_metrics", "val_loss", "_extra_state"}
    assert len(net) == len(load_file(teacher / "model" / "model.safetensors"))
    count = sum(len(group["params"]) for group in state["optimizer_states"][0]["param_groups"])
    assert count == len(net) - sum("position_ids" in name for name in net)
    assert seen and all(one == ({False}, False, False) for one in seen)


def test_keep_1_is_plain_distillation(composed, teacher):
    common = (f"distill.teacher={teacher}", "distill=tinybert", *QUIET)
    dense, own = composed("method=nosp", *common), composed("method=distill_prune", "keep_frac=1", *common)
    run(dense), run(own)
    assert all(torch.equal(weight, weights_of(own)[name]) for name, weight in weights_of(dense).items())


def test_nothing_of_the_group_counts_without_a_teacher(composed, teacher, tmp_path):
    def identify(*overrides):
        return identity.identify(identity.plain(composed(*overrides)))

    plain = identity.plain(composed())
    bare = copy.deepcopy(plain)
    del bare["distill"]
    one = identity.identify(plain)
    assert one == identity.identify(bare) == identify("distill=logits", "distill.w_cls=3")
    assert one == identify("distill=none", f"distill.teacher={teacher}")
    copied = shutil.copytree(teacher, tmp_path / "elsewhere")
    taught = identify(f"distill.teacher={teacher}")
    assert taught == identify(f"distill.teacher={copied}") == identify(f"distill.teacher={copied / 'model'}")
    (copied / "model" / "more.txt").write_text("another content")
    assert (
        len(
            {
                one,
                taught,
                identify(f"distill.teacher={copied}"),
                identify(f"distill.teacher={teacher}", "distill.w_att=2"),
            }
        )
        == 4
    )


def test_a_student_can_start_from_its_teacher(composed, teacher):
    common = (f"distill.teacher={teacher}", "distill.start=teacher", "model.dropout=0", "model.attention_dropout=0")
    cfg = composed(*common, "probe_steps=0", "steps=10", "lr=1e-12")
    run(cfg)
    first = {name: values[0] for name, values in figures(identity.cell(cfg).folder).items()}
    assert max(first[f"loss/{name}"] for name in ("att", "rep", "cls")) < 1e-9
    own = load_file(teacher / "model" / "model.safetensors")
    assert all(torch.allclose(weight, own[name], atol=1e-6) for name, weight in weights_of(cfg).items())


def test_a_teacher_of_another_shape(composed, changed, teacher):
    """Another width, depth and number of heads: a projection that is trained, and no part of what is delivered."""

    def other(net, tokenizer):
        return BertForSequenceClassification(BertConfig(**(net.config.to_dict() | SHAPE)))

    folder = changed(other)
    more = (f"distill.teacher={folder}", *QUIET)
    with pytest.raises(UserError, match=r"128 wide, the teacher's 64: set distill.projection=true"):
        run(composed(*more))
    with pytest.raises(UserError, match="not of the teacher's shapes"):
        run(composed(*more, "distill=logits", "distill.start=teacher", "name=start"))
    cfg = composed(*more, "distill.projection=true", "distill.layer_map=[1,3]", "name=bridge")
    assert run(cfg)["status"] == "done"
    assert not any("projection" in name for name in weights_of(cfg))
    assert run(composed(*more, "distill=logits", "name=logits"))["status"] == "done"


class Evil:
    def __reduce__(self):
        return (pytest.fail, ("the pickle was executed",))


def test_a_pickled_teacher_is_read_as_weights_alone(composed, changed):
    def pickled(net, tokenizer):
        state = net.state_dict()
        (folder_of(net) / "model.safetensors").unlink()
        torch.save(state, folder_of(net) / "pytorch_model.bin")

    def folder_of(net):
        from pathlib import Path

        return Path(net.name_or_path)

    folder = changed(pickled)
    assert run(composed(f"distill.teacher={folder}", *QUIET))["status"] == "done"
    torch.save({"classifier.weight": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"distill\.teacher"):
        run(composed(f"distill.teacher={folder}", *QUIET))


def relabelled(labels):
    def change(net, tokenizer):
        net.config.id2label = dict(enumerate(labels))
        net.config.label2id = {label: index for index, label in enumerate(labels)}
        return net

    return change


def swapped(net, tokenizer):
    """Its first class is the task's second, and nothing but its score says so."""
    relabelled(["LABEL_0", "LABEL_1"])(net, tokenizer)
    with torch.no_grad():
        for tensor in (net.classifier.weight, net.classifier.bias):
            tensor.copy_(tensor.flip(0))
    return net


def more_labels(net, tokenizer):
    config = BertConfig(**(net.config.to_dict() | {"id2label": {i: str(i) for i in range(3)}}))
    return BertForSequenceClassification(config)


def headless(net, tokenizer):
    return net.bert


def other_words(net, tokenizer):
    tokenizer.add_tokens(["keepfrac"])
    return tokenizer


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (relabelled(["better", "worse"]), "has the classes better, worse, the task bad, good"),
        (swapped, "its label order disagrees"),
        (more_labels, "has 3 labels, the task 2"),
        (headless, "lacks classifier.* fine-tune it first"),
        (other_words, "another tokenizer"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused_before_training(composed, changed, monkeypatch, change, said):
    monkeypatch.setattr("keepfrac.training.finetune.FineTune.training_step", lambda *_: pytest.fail("it trained"))
    folder = changed(change)
    with pytest.raises(UserError, match=said):
        run(composed(f"distill.teacher={folder}"))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("distill.teacher=nobody/nothing",), "nobody/nothing: not a local folder"),
        (("distill.teacher={empty}",), "neither the folder of a finished run"),
        (("distill.teacher={teacher}", "fidelity_every=2"), "fidelity_every"),
        (("distill.teacher={teacher}", "distill.layer_map=[1,9]"), "distill.layer_map=.1, 9.: must give"),
        (("distill.teacher={teacher}", "distill.temperature=0"), "distill.temperature=0: must be"),
    ],
)
def test_what_cannot_be_is_said_before_training(composed, teacher, tmp_path, monkeypatch, overrides, said):
    monkeypatch.setattr("keepfrac.training.finetune.FineTune.training_step", lambda *_: pytest.fail("it trained"))
    words = [word.format(teacher=teacher, empty=tmp_path) for word in overrides]
    with pytest.raises(UserError, match=said):
        run(composed(*words))


def test_a_regression_learns_from_both(composed, tmp_path):
    for name in ("train", "validation", "test"):
        rows = "\n".join(f"{name} {'fine ' * (i % 5)}film,{i % 5}.0" for i in range(40))
        (tmp_path / f"{name}.csv").write_text(f"text,label\n{rows}\n")
    files = [f"task.{name}_file={tmp_path}/{name}.csv" for name in ("train", "validation", "test")]
    common = (*files, "task.problem=regression", "probe_steps=0", "steps=10")
    first = composed(*common, "name=first")
    run(first)
    cfg = composed(*common, f"distill.teacher={identity.cell(first).folder}")
    found = run(cfg)
    path = figures(identity.cell(cfg).folder)
    assert "val/pearson" in found["teacher"]["scores"] and path["loss/cls"][0] > 0 and path["loss/task"][0] > 0
