"""PEFT's folders, both ways: PEFT itself is the judge of what each field of its configuration means."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForSequenceClassification

from keepfrac.adapters import peft_folder
from keepfrac.adapters.peft_folder import read_peft, start_from, write_peft
from keepfrac.adapters.surgery import Target, adapted, attach
from keepfrac.errors import UserError
from keepfrac.models.targets import targets_of
from tests.tiny import inputs, tiny
from tests.unit.adapters.test_units import tuned

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT's advice on the fields, and the names that it asks for

DENSE = [".*attention.self.query", ".*attention.self.value", ".*intermediate.dense", ".*output.dense"]
FIELDS = {
    "as it is": {},
    "rslora": {"use_rslora": True},
    "alpha by an end": {"alpha_pattern": {"query": 32}},
    "alpha by a regular expression": {"alpha_pattern": {r"layer\.[01]\..*\.(query|value)": 1, "value": 64}},
    "alpha anchored": {"alpha_pattern": {r"^bert.encoder.layer.1.attention.self.query": 0.5}},
    "alpha of a part of a name": {"alpha_pattern": {"ery": 99}},
    "rank by a pattern": {"rank_pattern": {r"layer\.2\..*query": 2, "^bert.encoder.layer.0.attention.self.value": 7}},
    "rank, alpha and rslora": {"rank_pattern": {"query": 6}, "alpha_pattern": {"query": 3}, "use_rslora": True},
    "biases, all": {"bias": "all"},
    "biases, beside updates": {"bias": "lora_only"},
    "a head": {"modules_to_save": ["classifier"]},
    "a task": {"task_type": "SEQ_CLS"},
    "some layers": {"layers_to_transform": [0, 2], "layers_pattern": "layer"},
    "without some": {"exclude_modules": [r"bert.encoder.layer.1.attention.self.value"]},
    "targets by a regular expression": {"target_modules": r".*layer\.[12].*(query|intermediate\.dense)"},
    "other linears": {"target_modules": ["intermediate.dense", "output.dense"]},
    "dropout": {"lora_dropout": 0.5},
    "fan_in_fan_out of a plain linear": {"fan_in_fan_out": True},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "not zero": {"init_lora_weights": False},
    "mica": {"init_lora_weights": "mica"},
}
REFUSED = {
    "velora_config": {"velora_config": {"num_groups": 4}},
    "use_dora": {"use_dora": True},
    "lora_bias": {"lora_bias": True},
    "init_lora_weights=pissa": {"init_lora_weights": "pissa"},
    "init_lora_weights=olora": {"init_lora_weights": "olora"},
    "layer_replication": {"layer_replication": [[0, 2], [1, 3]]},
    "trainable_token_indices": {"trainable_token_indices": [5, 6]},
    "target_parameters": {"target_parameters": ["query.weight"], "target_modules": ["value"]},
    "kasa_config": {"kasa_config": {}},
}


def saved_by_peft(net, folder, **fields):
    """PEFT's model with random updates, as its author would have saved it."""
    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["query", "value"]} | fields)
    theirs = peft.get_peft_model(net, config).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if parameter.requires_grad or "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    theirs.save_pretrained(folder)
    return theirs.double()


def twins(**config):
    torch.manual_seed(0)
    ours, theirs = tiny(**config), tiny(**config)
    theirs.load_state_dict(ours.state_dict())
    return ours.double(), theirs


@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS)
def test_what_peft_computes_is_computed_here(tmp_path, fields):
    ours, theirs = twins()
    theirs = saved_by_peft(theirs, tmp_path, **fields)
    attach(ours, targets_of(ours, DENSE), 4, 2.0)
    start_from(ours, read_peft(tmp_path))
    logits = ours(**inputs()).logits
    torch.testing.assert_close(logits, theirs(**inputs()).logits, rtol=0, atol=1e-6)
    with theirs.disable_adapter():
        assert not torch.allclose(logits, theirs(**inputs()).logits, atol=1e-2)


@pytest.mark.parametrize("fields", REFUSED.values(), ids=REFUSED)
def test_what_is_more_than_a_plain_lora_is_refused_by_its_name(tmp_path, fields, request):
    saved_by_peft(tiny(), tmp_path, **fields)
    with pytest.raises(UserError, match=f"method.adapter=.*{request.node.callspec.id.partition('=')[0]}"):
        read_peft(tmp_path)


def test_every_field_that_peft_has_is_known_or_refused_when_it_is_set(tmp_path):
    saved_by_peft(twins()[1], tmp_path)
    config = json.loads((tmp_path / peft_folder.PEFT_CONFIG).read_text())
    known = peft_folder.HONOURED | peft_folder.BY_TENSORS | peft_folder.NO_EFFECT
    names = {field.name for field in dataclasses.fields(peft.LoraConfig)} | config.keys()
    assert known <= names
    for name in [*(names - known), "a_field_of_the_next_version"]:
        (tmp_path / peft_folder.PEFT_CONFIG).write_text(json.dumps(config | {name: [1]}))
        with pytest.raises(UserError, match=rf"{name}=\[1\]"):
            read_peft(tmp_path)


def test_a_whole_fused_linear_is_named_by_its_path(tmp_path):
    ours, theirs = twins(family="gpt2")
    theirs = saved_by_peft(theirs, tmp_path, target_modules=["c_attn"], fan_in_fan_out=True)
    slices = twins(family="gpt2")[0]
    attach(slices, targets_of(slices, ["query", "value"]), 4, 2.0)
    with pytest.raises(UserError, match=r"method.targets=\['\.\*c_attn'\]"):
        start_from(slices, read_peft(tmp_path))
    attach(ours, targets_of(ours, [".*c_attn"]), 4, 2.0)
    start_from(ours, read_peft(tmp_path))
    torch.testing.assert_close(ours(**inputs()).logits, theirs(**inputs()).logits, rtol=0, atol=1e-6)


def test_a_copy_of_a_tied_module_is_refused(tmp_path):
    ours, theirs = twins(family="gpt2")
    saved_by_peft(theirs, tmp_path, target_modules=["c_fc"], fan_in_fan_out=True, modules_to_save=["lm_head"])
    attach(ours, targets_of(ours, ["ffn_in"]), 4, 2.0)
    with pytest.raises(UserError, match=r"modules_to_save has a copy of lm_head.weight, .* transformer.wte.weight"):
        start_from(ours, read_peft(tmp_path))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c, t: c.update(r=5), "factors of rank 4, and r or rank_pattern say 5"),
        (lambda c, t: c.update(alpha_pattern={"(": 1}), "no regular expression"),
        (lambda c, t: t.pop(next(name for name in t if "lora_B" in name)), "no pair of factors"),
        (lambda c, t: t.update({"base_model.model.classifier.bias": torch.zeros(1)}), r"\(1,\) does not fit .*\(3,\)"),
        (lambda c, t: t.update({"base_model.model.score.weight": torch.zeros(1)}), "score.weight .* does not fit"),
        (lambda c, t: c.update(peft_type="IA3"), 'peft_type="IA3"'),
    ],
)
def test_a_damaged_folder_is_said(tmp_path, change, said):
    ours, theirs = twins()
    saved_by_peft(theirs, tmp_path)
    config, tensors = (
        json.loads((tmp_path / "adapter_config.json").read_text()),
        load_file(weights := tmp_path / "adapter_model.safetensors"),
    )
    change(config, tensors)
    (tmp_path / "adapter_config.json").write_text(json.dumps(config)), save_file(tensors, weights)
    attach(ours, targets_of(ours, ["query", "value"]), 4, 2.0)
    with pytest.raises(UserError, match=said):
        start_from(ours, read_peft(tmp_path))


def test_an_exported_folder_is_loaded_by_peft_s2_included(tmp_path):
    net = tuned(tiny(), ("query", "value"), rank=4, sparse=10)
    net.save_pretrained(tmp_path / "model")
    write_peft(net, tmp_path / "peft", str(tmp_path / "model"))
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "peft").eval()
    torch.testing.assert_close(loaded(**inputs()).logits, net(**inputs()).logits, rtol=0, atol=1e-5)
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (14, 28.0)


def test_a_folder_that_does_not_fit_is_said(tmp_path):
    net = tiny()
    attach(net, targets_of(net, ["query", "value"]), 4, 2.0)
    folder = write_peft(net, tmp_path / "peft", "base")
    for roles, rank, said in (
        (["query"], 4, "which method.targets does not name: it names bert.encoder.layer.0.*query"),
        (["query", "value"], 8, r"with method.rank=8 they must be \(32, 8\)"),
    ):
        other = tiny()
        attach(other, targets_of(other, roles), rank, 2.0)
        with pytest.raises(UserError, match=said):
            start_from(other, read_peft(folder))
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    with pytest.raises(UserError, match="only a plain LoRA can be read, not one with use_dora=true"):
        read_peft(folder)
    (folder / "adapter_config.json").write_text("[1]")
    for other in (folder, tmp_path):
        with pytest.raises(UserError, match="not a PEFT folder"):
            read_peft(other)
    with pytest.raises(UserError, match="merge=keep"):
        write_peft(tiny(), tmp_path / "none", "base")


def test_slices_of_a_fused_linear_are_one_peft_update(tmp_path):
    from transformers.pytorch_utils import Conv1D

    net = nn.Sequential(Conv1D(24, 8))
    targets = [Target("0", "query", 0, 8), Target("0", "value", 16, 8)]
    attach(net, targets, 2, 3.0, positions={t: torch.tensor([1, 9, 63]) for t in targets})
    for part in adapted(net)["0"].parts():
        nn.init.normal_(part.u), nn.init.normal_(part.values)
    ((a, b, scale),) = read_peft(write_peft(net, tmp_path, "base")).factors.values()
    assert a.shape == (10, 8) and b.shape == (24, 10)
    torch.testing.assert_close(scale * (b @ a).t(), net[0].delta().detach())
