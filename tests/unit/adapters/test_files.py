"""Updates in files: beside a model's weights, and as PEFT's folders, both ways."""

import json

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from keepfrac.adapters.files import attach_saved, read_peft, start_from, write_peft
from keepfrac.adapters.surgery import Target, adapted, attach
from keepfrac.errors import UserError
from keepfrac.models.targets import targets_of
from tests.tiny import inputs, tiny
from tests.unit.adapters.test_units import tuned

OLD_NAMES = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing")  # PEFT asks for it


def test_a_model_saved_with_its_updates_gets_them_back(tmp_path):
    net = tuned(tiny(), ("query", "value"), rank=4, sparse=10)
    net.save_pretrained(tmp_path)
    plain, info = AutoModelForSequenceClassification.from_pretrained(
        tmp_path, output_loading_info=True, attn_implementation="eager"
    )
    assert not info["missing_keys"] and all(".updates." in key for key in info["unexpected_keys"])
    assert not torch.allclose(plain(**inputs()).logits, net(**inputs()).logits, atol=1e-2)
    assert attach_saved(plain, tmp_path)
    assert torch.equal(plain.eval()(**inputs()).logits, net(**inputs()).logits)
    assert plain.state_dict().keys() == net.state_dict().keys()
    assert not attach_saved(tiny(), tmp_path / "nothing")


@OLD_NAMES
def test_an_exported_folder_is_loaded_by_peft_s2_included(tmp_path):
    peft = pytest.importorskip("peft")
    net = tuned(tiny(), ("query", "value"), rank=4, sparse=10)
    net.save_pretrained(tmp_path / "model")
    write_peft(net, tmp_path / "peft", str(tmp_path / "model"))
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "peft").eval()
    torch.testing.assert_close(loaded(**inputs()).logits, net(**inputs()).logits, rtol=0, atol=1e-5)
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (14, 28.0)


@OLD_NAMES
@pytest.mark.parametrize("rslora", [False, True])
def test_a_folder_that_peft_wrote_is_where_training_starts(tmp_path, rslora):
    peft = pytest.importorskip("peft")
    ours, theirs = tiny(), tiny()
    theirs.load_state_dict(ours.state_dict())
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=["query", "value"], modules_to_save=["classifier"], use_rslora=rslora
    )
    theirs = peft.get_peft_model(theirs, config).eval()
    for name, parameter in theirs.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            nn.init.normal_(parameter, std=0.1)
    theirs.save_pretrained(tmp_path)
    attach(ours, targets_of(ours, ["query", "value"]), 4, 2.0)
    start_from(ours, read_peft(tmp_path))
    torch.testing.assert_close(ours(**inputs()).logits, theirs(**inputs()).logits, rtol=0, atol=1e-6)


def test_a_folder_that_does_not_fit_is_said(tmp_path):
    net = tiny()
    attach(net, targets_of(net, ["query", "value"]), 4, 2.0)
    folder = write_peft(net, tmp_path / "peft", "base")
    for roles, rank, said in (
        (["query"], 4, "method.targets name"),
        (["query", "value"], 8, r"with method.rank=8 they must be \(32, 8\)"),
    ):
        other = tiny()
        attach(other, targets_of(other, roles), rank, 2.0)
        with pytest.raises(UserError, match=said):
            start_from(other, read_peft(folder))
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    with pytest.raises(UserError, match="only a plain LoRA"):
        read_peft(folder)
    with pytest.raises(UserError, match="not a PEFT folder"):
        read_peft(tmp_path)
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
