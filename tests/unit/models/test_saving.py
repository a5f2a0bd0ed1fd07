"""A folder of every kind of model, there and back."""

import json

import pytest
import torch
from transformers import AutoModelForQuestionAnswering, AutoModelForTokenClassification

import keepfrac
from keepfrac.errors import UserError
from keepfrac.prune.masks import Masks
from tests.tiny import inputs, tiny

KINDS = {
    "dense": lambda: tiny(attention="sdpa"),
    "masked language model": lambda: tiny(head="masked_lm", attention="sdpa"),
    "decoder": lambda: tiny("llama", attention="sdpa"),
    "cut": lambda: keepfrac.prune(tiny(attention="sdpa"), keep_frac=0.5, by="magnitude"),
    "cut decoder": lambda: keepfrac.prune(tiny("gpt2", attention="sdpa"), keep_frac=0.5, by="magnitude"),
    "updates": lambda: with_updates(tiny(attention="sdpa")),
}


def with_updates(net):
    keepfrac.add_updates(net, rank=4, sparse=8)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if ".updates." in name:
                parameter.normal_(std=0.1)
    return net


def other_head(auto):
    return auto.from_config(tiny(attention="sdpa", num_labels=2).config).eval()


KINDS |= {
    "tokens": lambda: other_head(AutoModelForTokenClassification),
    "questions": lambda: other_head(AutoModelForQuestionAnswering),
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_it_comes_back_as_it_was(kind, tmp_path):
    net = kind()
    again = keepfrac.load(keepfrac.save(net, tmp_path / "model"))
    assert type(again) is type(net) and not again.training
    with torch.no_grad():
        assert torch.equal(again(**inputs())[0], net(**inputs())[0])


@pytest.mark.parametrize("form", ["packed", "packed_int8"])
def test_a_masked_model_is_packed(form, tmp_path):
    net = tiny(attention="sdpa")
    handle = keepfrac.mask_weights(net, 0.1)
    again = keepfrac.load(keepfrac.save(net, tmp_path, masks=handle, form=form))
    tolerance = 0 if form == "packed" else 0.2
    torch.testing.assert_close(again(**inputs()).logits, net(**inputs()).logits, rtol=0, atol=tolerance)
    kept = dict(Masks.load(tmp_path).items())
    assert all(torch.equal(mask, kept[name]) for name, mask in handle.masks.items())


def test_what_cannot_be_is_said(tmp_path):
    with pytest.raises(UserError, match="form=zip: must be one of plain"):
        keepfrac.save(tiny(), tmp_path, form="zip")
    with pytest.raises(UserError, match=r"has no config\.json"):
        keepfrac.load(tmp_path / "nothing")
    with pytest.raises(UserError, match="sparse enough"):
        keepfrac.save(tiny(), tmp_path / "dense", form="packed")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        keepfrac.save(tiny(), tmp_path / "file")
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "model" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="it is a run's folder"):
        keepfrac.load(tmp_path / "run")
    net = tiny()
    net.save_pretrained(tmp_path)
    net.config.architectures = ["BertForNothing"]
    net.config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="its class BertForNothing is not known"):
        keepfrac.load(tmp_path)


def test_a_folder_is_read_through_the_one_door(tmp_path):
    asks = {"model_type": "not_known", "auto_map": {"AutoConfig": "own.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(asks))
    (tmp_path / "own.py").write_text("raise SystemExit('foreign code ran')")
    with pytest.raises(UserError, match="asks for code of its own"):
        keepfrac.load(tmp_path)
    tiny().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"model\.safetensors is damaged or cut short"):
        keepfrac.load(tmp_path)
