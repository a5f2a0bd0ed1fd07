"""Updates of a stock model in a plain loop."""

import pytest
import torch

import keepfrac
from keepfrac.errors import UserError
from tests.tiny import inputs, tiny
from tests.unit.models.test_shrink import trained


@pytest.mark.parametrize("sparse", [0, 16])
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_updates_learn_and_merge_into_a_stock_model(family, sparse):
    net = tiny(family, "classification", pad_token_id=0)
    classes, frozen = [type(m) for m in net.modules()], net.get_input_embeddings().weight.clone()
    before = net(**inputs()).logits.detach()
    handle = keepfrac.add_updates(net, rank=4, sparse=sparse)
    torch.testing.assert_close(net(**inputs()).logits, before)
    assert 0 < handle.kept()["trained_frac"] < 0.2
    assert {(row["rank"], row["scale"], row["sparse"]) for row in handle.report()} == {(4, 2.0, sparse)}
    trained(net)
    assert torch.equal(net.get_input_embeddings().weight, frozen)
    learnt = net(**inputs()).logits.detach()
    assert not torch.allclose(learnt, before, atol=1e-3)
    handle.merge()
    assert [type(m) for m in net.modules()] == classes and all(p.requires_grad for p in net.parameters())
    torch.testing.assert_close(net(**inputs()).logits, learnt, rtol=1e-4, atol=1e-4)


def test_updates_are_taken_off_and_kept_in_a_peft_folder(tmp_path):
    net = tiny()
    before = net(**inputs()).logits.detach()
    handle = keepfrac.add_updates(net, rank=4, train_head=False)
    trained(net)
    learnt = net(**inputs()).logits.detach()
    handle.save(tmp_path, "base")
    handle.restore()
    torch.testing.assert_close(net(**inputs()).logits, before)
    keepfrac.add_updates(net, rank=4, adapter=tmp_path)
    torch.testing.assert_close(net(**inputs()).logits, learnt)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"rank": 99}, "rank 99 for a 32 x 32 weight"),
        ({"targets": ["qkv"]}, "^targets=qkv: matches nothing"),
        ({"alpha": 0}, "alpha 0"),
        ({"dropout": 1}, "dropout=1"),
        ({"sparse": 4, "selector": "gradient"}, "selector=gradient: must be one of grebsmo"),
        ({"adapter": "nowhere"}, "^adapter=nowhere: not a PEFT folder"),
    ],
)
def test_what_cannot_be_is_said(words, said):
    with pytest.raises(UserError, match=said):
        keepfrac.add_updates(tiny(), **words)
