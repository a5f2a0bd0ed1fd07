import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification

from keepfrac.models import pruned
from keepfrac.models.cut import cut, encoder_layers
from keepfrac.prune.factorize import factorize_
from keepfrac.prune.structure import LayerStructure, Structure
from tests.tiny import inputs, tiny
from tests.unit.models.elsewhere import logits_elsewhere

UNEVEN = Structure((LayerStructure((1, 3), (0, 5, 7)), LayerStructure((), (2, 3)), LayerStructure((0,), ())))


def small(family="bert", head="classification"):
    net = tiny(family, head, attention="sdpa")
    factorize_(net, [encoder_layers(net)[0].query], rank=5)
    layers = list(UNEVEN.layers)
    layers[0] = LayerStructure(layers[0].heads, layers[0].neurons, {"query": (0, 2)})
    return cut(net, Structure(tuple(layers)))


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
@pytest.mark.parametrize("head", ["classification", "masked_lm"])
def test_it_reloads_by_registration(family, head, tmp_path):
    net = small(family, head)
    net.save_pretrained(tmp_path)
    auto = AutoModelForSequenceClassification if head == "classification" else AutoModelForMaskedLM
    again, info = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()) and type(again) is type(net)
    with torch.no_grad():
        assert torch.equal(again.eval()(**inputs()).logits, net(**inputs()).logits)
    config = AutoConfig.from_pretrained(tmp_path)
    assert (config.layer_heads, config.layer_ffn, config.head_dim) == ([2, 0, 1], [3, 2, 0], 8)
    assert list(config.low_rank.values()) == [2] and config.original_layers == 3


def test_the_bare_encoder_and_another_head_load_from_the_same_folder(tmp_path):
    small().save_pretrained(tmp_path)
    encoder = AutoModel.from_pretrained(tmp_path)
    assert isinstance(encoder, pruned.PrunedBertModel)
    assert encoder(**inputs()).last_hidden_state.shape == (3, 9, 32)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_a_fresh_process_without_the_project_loads_it(family, tmp_path):
    net = small(family)
    net.save_pretrained(tmp_path / "model")
    with torch.no_grad():
        wanted = net(**inputs()).logits
    assert torch.equal(logits_elsewhere(tmp_path / "model", tmp_path / "again", attention="sdpa"), wanted)
    for name in ("pruned.py", "families.py"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "model" / name).read_bytes()
    before, after = (json.loads((tmp_path / f / "config.json").read_text()) for f in ("model", "again"))
    assert before["auto_map"] == after["auto_map"]
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "again").eval()
    with torch.no_grad():
        assert torch.equal(again(**inputs()).logits, wanted)


@pytest.mark.parametrize(("head", "auto"), [("classification", "SequenceClassification"), ("masked_lm", "MaskedLM")])
def test_its_folder_says_how_it_is_loaded(head, auto, tmp_path):
    small("bert", head).save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert f'AutoModelFor{auto}.from_pretrained("<this folder>", trust_remote_code=True)' in card
    assert "trust_remote_code=True`, `pipeline` too" in card
    tiny().save_pretrained(tmp_path / "stock")
    assert not (tmp_path / "stock" / "README.md").exists()


def test_the_config_names_every_head(tmp_path):
    small("roberta").save_pretrained(tmp_path)
    names = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert names["AutoModelForMaskedLM"] == "pruned.PrunedRobertaForMaskedLM"
    assert names["AutoConfig"] == "pruned.PrunedRobertaConfig" and len(names) == 6


@pytest.mark.parametrize(
    ("field", "value"),
    [("layer_heads", [1, 2]), ("layer_ffn", [3, -1, 4]), ("low_rank", {"encoder.layer.0.attention.self.query": 0})],
)
def test_sizes_that_cannot_be_are_refused(field, value):
    config = tiny().config.to_dict()
    config.pop("model_type")
    with pytest.raises(ValueError, match=field):
        pruned.PrunedBertForSequenceClassification(pruned.PrunedBertConfig(**{**config, field: value}))


def test_without_sizes_it_is_the_dense_model():
    net = tiny()
    settings = net.config.to_dict()
    settings.pop("model_type")
    dense = pruned.PrunedBertForSequenceClassification(pruned.PrunedBertConfig(**settings)).eval()
    dense.load_state_dict(net.state_dict())
    with torch.no_grad():
        assert torch.allclose(dense(**inputs()).logits, net(**inputs()).logits, atol=1e-6)


def test_it_trains():
    net = small().train()
    net(**inputs()).logits.square().sum().backward()
    assert all(p.grad is not None for p in net.bert.encoder.parameters())


def test_its_file_leans_on_nothing_of_the_project():
    for name in ("pruned.py", "families.py"):
        text = Path(pruned.__file__).with_name(name).read_text()
        assert "keepfrac" not in text and "src" not in text


EARLIER = Path(__file__).resolve().parents[2] / "fixtures" / "earlier" / "earlier"


def test_a_folder_of_the_earlier_version_loads_and_is_delivered_anew(tmp_path):
    (folder,) = (path / "model" for path in EARLIER.glob("l0_*"))
    net, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert type(net) is pruned.PrunedBertForSequenceClassification and not any(info.values())
    assert (net.config.layer_heads, net.config.layer_ffn) == ([1, 1], [56, 8])
    net.save_pretrained(tmp_path / "here")
    logits_elsewhere(folder, tmp_path / "there")
    there = AutoModelForSequenceClassification.from_pretrained(tmp_path / "there")
    for one, other in zip(net.parameters(), there.parameters(), strict=True):
        assert torch.equal(one, other)
    assert (tmp_path / "here" / "families.py").exists()
