"""The public function: a stock model in a plain loop, and back."""

import copy
from pathlib import Path

import pytest
import torch
import yaml

import keepfrac
from keepfrac.errors import UserError
from keepfrac.sparse.save_less import WAYS
from tests.tiny import inputs, tiny

CONF = Path(__file__).resolve().parents[3] / "conf" / "backward"


def steps(net, kind=torch.optim.AdamW, count=2):
    """Trains in a plain loop."""
    optimizer = kind(net.parameters(), lr=1e-3)
    for _ in range(count):
        net.train()
        net(**inputs(), labels=torch.tensor([0, 1, 2])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return net.eval()


@pytest.mark.parametrize("by", WAYS)
def test_two_steps_and_the_stock_model_is_back(by):
    net = tiny("bert", attention="sdpa")
    before, classes = copy.deepcopy(net), [type(module) for module in net.modules()]
    handle = keepfrac.save_less(net, by=by)
    steps(net)
    assert handle.kept()["asked"] == WAYS[by][1]["keep_frac"]
    handle.restore()
    assert [type(module) for module in net.modules()] == classes
    assert net.state_dict().keys() == before.state_dict().keys()
    moved = [not torch.equal(p, q) for p, q in zip(net.parameters(), before.parameters(), strict=True)]
    assert sum(moved) >= len(moved) - 1  # BERT's second kind of token is never met
    before.load_state_dict(net.state_dict())
    with torch.no_grad():
        assert torch.equal(net(**inputs()).logits, before(**inputs()).logits)


def test_exact_storage_and_all_rows_are_dense_training():
    dense = tiny("bert", attention="sdpa", hidden_dropout_prob=0, attention_probs_dropout_prob=0)
    less = copy.deepcopy(dense)
    keepfrac.save_less(less, keep_frac=1, store="exact", kernels="torch")
    steps(dense, torch.optim.SGD), steps(less, torch.optim.SGD)  # AdamW would blow rounding up
    for one, other in zip(dense.parameters(), less.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_defaults_are_those_of_conf():
    assert set(WAYS) == {path.stem for path in CONF.glob("*.yaml")} - {"none"}
    for name, (saver, given) in WAYS.items():
        written = yaml.safe_load((CONF / f"{name}.yaml").read_text())
        assert written.pop("_target_") == f"{saver.__module__}.{saver.__name__}"
        assert written == {"name": name, **given} | ({"selection_seed": "${seed}"} if "selection_seed" in given else {})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"by": "nrom"}, "by=nrom: must be one of late, .*did you mean norm?"),
        ({"keep_frac": 0}, r"backward.keep_frac=0: must be a number in \(0, 1\]"),
        ({"stoer": "8bit"}, "backward.stoer: no such key; did you mean store?"),
        ({"store": "4bit"}, "backward.store=4bit: must be one of 8bit"),
    ],
)
def test_what_is_not_there_is_said(words, said):
    with pytest.raises(UserError, match=said):
        keepfrac.save_less(tiny(), **words)
