from importlib.util import find_spec

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from keepfrac.errors import UserError
from keepfrac.models.cut import counts_of, cut, encoder_layers
from keepfrac.models.export import ONNX_PACKAGES, export
from keepfrac.prune.attach import attach, gates_of
from keepfrac.prune.factorize import factorize_
from keepfrac.prune.structure import LayerStructure, Structure
from tests.tiny import inputs, tiny

HEADS = (0, 1, 2, 3)
UNIFORM = Structure(
    (LayerStructure(HEADS, (1, 2, 3)), LayerStructure((), (), {}, True), LayerStructure(HEADS, (4, 5, 6)))
)
UNEVEN = Structure((LayerStructure((1, 3), (0, 5)), LayerStructure((), (2,)), LayerStructure((0,), ())))
MISSING = [name for name in ONNX_PACKAGES if find_spec(name) is None]


def logits(net, batch):
    with torch.no_grad():
        return net(**batch).logits


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
@pytest.mark.parametrize(("kind", "structure"), [("stock_uniform", UNIFORM), ("stock_padded", UNEVEN)])
def test_a_plain_class_holds_the_model(family, kind, structure, tmp_path):
    net = cut(tiny(family), structure)
    folder = export(net, kind, tmp_path, inputs())
    again, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()) and again.config.model_type == family
    assert not list(folder.glob("*.py"))
    assert (logits(again.eval(), inputs()) - logits(net, inputs())).abs().max() < 1e-5
    if kind == "stock_uniform":
        assert [c.neurons for c in counts_of(again)] == [3, 3]
    else:
        assert [c.neurons for c in counts_of(again)] == [48, 48, 48]


def test_low_rank_is_multiplied_out_where_padded(tmp_path):
    net = tiny()
    factorize_(net, [encoder_layers(net)[1].ffn_in], rank=4)
    small = cut(net, Structure.full(counts_of(net)))
    again = AutoModelForSequenceClassification.from_pretrained(export(small, "stock_padded", tmp_path, inputs()))
    assert (logits(again.eval(), inputs()) - logits(small, inputs())).abs().max() < 1e-5
    with pytest.raises(UserError, match="low-rank"):
        export(small, "stock_uniform", tmp_path, inputs())


def test_what_no_stock_class_can_hold_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"\[2, 0, 1\] of 4 heads.*stock_padded"):
        export(cut(tiny(), UNEVEN), "stock_uniform", tmp_path, inputs())
    assert not any(tmp_path.iterdir())


def test_a_dense_model_is_its_own_stock_form(tmp_path):
    folder = export(tiny(), "stock_uniform", tmp_path, inputs())
    assert AutoModelForSequenceClassification.from_pretrained(folder).config.model_type == "bert"


@pytest.mark.parametrize(("family", "longest"), [("bert", 40), ("roberta", 39), ("distilbert", 40)])
def test_an_exported_program_takes_any_batch_and_every_length_of_the_model(family, longest, tmp_path):
    net = cut(tiny(family, attention="sdpa"), UNEVEN)  # 40 positions; RoBERTa's first is that of its padding, 0 here
    folder = export(net, "torch_export", tmp_path, inputs(1, longest))
    program = torch.export.load(folder / "model.pt2").module()
    for batch in (inputs(1, 9), inputs(2, 9), inputs(5, 13), inputs(2, longest - 1), inputs(2, longest)):
        assert (program(**batch) - logits(net, batch)).abs().max() < 1e-5
    with pytest.raises((IndexError, RuntimeError)):
        logits(net, inputs(1, longest + 1))


@pytest.mark.parametrize("absent", [ONNX_PACKAGES, ("onnxruntime",)])
def test_onnx_without_its_packages_names_them(tmp_path, monkeypatch, absent):
    monkeypatch.setattr("keepfrac.models.export.find_spec", lambda name: None if name in absent else object())
    with pytest.raises(UserError, match=f"pip install {' '.join(absent)}$"):
        export(cut(tiny(), UNEVEN), "onnx", tmp_path, inputs())
    assert not any(tmp_path.iterdir())


@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
def test_onnx_gives_the_same_logits(tmp_path):
    import onnxruntime

    net = cut(tiny(attention="sdpa"), UNEVEN)
    folder = export(net, "onnx", tmp_path, inputs())
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    for batch in (inputs(), inputs(5, 13)):
        found = session.run(["logits"], {name: value.numpy() for name, value in batch.items()})[0]
        assert (torch.from_numpy(found) - logits(net, batch)).abs().max() < 1e-4


def test_unknown_forms_and_gated_models_are_refused(tmp_path):
    net = tiny()
    with pytest.raises(UserError, match="must be none or one of"):
        export(net, "tensorrt", tmp_path, inputs())
    attach(net, encoder_layers(net), gates_of(Structure.full(counts_of(net)), counts_of(net)))
    with pytest.raises(UserError, match="hooks"):
        export(net, "torch_export", tmp_path, inputs())
