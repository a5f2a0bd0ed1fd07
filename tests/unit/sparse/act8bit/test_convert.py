"""Conversion in place and back, its reports, and what it refuses."""

import copy
import pickle

import pytest
import torch
from torch import nn

from keepfrac.errors import UserError
from keepfrac.models.attention_scores import recorded
from tests.unit.sparse.act8bit.nets import FAMILIES, batch, converted, error, gradients, network


@pytest.mark.parametrize("family", FAMILIES)
def test_there_and_back(family):
    """The same parameters under the same names; stock classes afterwards; trained weights stay."""
    dense, net = network(family), network(family)
    before = {name: p.data_ptr() for name, p in net.named_parameters()}
    classes = [type(module) for module in net.modules()]
    handle = converted(net, 0.4, store="8bit", skip_zero_rows=True)
    assert net.state_dict().keys() == dense.state_dict().keys()
    assert {name: p.data_ptr() for name, p in net.named_parameters()} == before
    gradients(net, batch())
    assert handle.kept()["of"].endswith("12 linears") and 0.2 < handle.kept()["achieved"] <= 0.42
    handle.restore()
    assert [type(module) for module in net.modules()] == classes
    assert not any("late" in key for module in net.modules() for key in vars(module))
    assert not any(module._forward_pre_hooks for module in net.modules())
    assert error(gradients(net, batch())[1], gradients(dense, batch())[1]) == 0
    converted(net)


@pytest.mark.parametrize("family", ["bert", "roberta-prelayernorm"])
def test_evaluation_runs_the_stock_forward(family):
    dense, net = (network(family, p=0.1).eval() for _ in range(2))
    data = batch(lengths=[3, 17, 8, 17, 1])
    handle = converted(net, keep_frac=0.1, store="8bit")
    with torch.no_grad():
        assert torch.equal(net(**data).logits, dense(**data).logits)
    assert torch.equal(net(**data).logits, dense(**data).logits)
    assert handle.rng_state()["calls"] == [0, 0]


def test_hidden_states_are_those_of_the_stock_layers():
    dense, net, data = network(), network(), batch()
    converted(net)
    for mine, theirs in zip(
        net(**data, output_hidden_states=True).hidden_states,
        dense(**data, output_hidden_states=True).hidden_states,
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


def test_reports():
    net, data = network(), batch(lengths=[17, 9, 17, 1, 4])
    handle = converted(net, keep_frac=0.25, store="8bit")
    assert handle.kept()["achieved"] is None
    gradients(net, data)
    kept, rows = handle.kept(), handle.report()
    assert kept["asked"] == 0.25 and 0.15 < kept["achieved"] < 0.27 and "12 linears" in kept["of"]
    assert [row["site"].split(".", 1)[1] for row in rows] == [
        f"encoder.layer.{number}.{block}" for number in range(2) for block in ("attention", "feed_forward")
    ]
    for row in rows:
        assert row["fallback"] is None and 0 < row["bytes_kept"] < row["bytes_dense"] and row["asked"] == 0.25


def test_the_budget_counts_real_tokens_and_top_layer_rows_are_exact():
    """With a classifier on the first token, the top feed-forward has one live row per sample: all are used."""
    net, dense, data = network(), network(), batch(rows=4, length=17, lengths=[17, 12, 15, 16])
    handle = converted(net, keep_frac=0.1, rows="grad")
    got, want = gradients(net, data)[1], gradients(dense, data)[1]
    name = "bert.encoder.layer.1.output.dense.weight"
    assert error(got, want, [name]) < 1e-6
    top = handle.report()[-1]
    assert top["achieved"] == pytest.approx(4 / 60)
    assert handle.report()[0]["achieved"] == pytest.approx(6 / 60)


def test_copies_and_pickles():
    net = network()
    handle = converted(net)
    gradients(net, batch())
    twin = copy.deepcopy(net)
    assert error(gradients(twin, batch())[1], gradients(net, batch())[1]) == 0
    assert twin.bert.encoder.layer[0].late is not net.bert.encoder.layer[0].late
    gradients(pickle.loads(pickle.dumps(net)), batch())
    assert handle.rng_state()["calls"] == [2, 2]


def test_what_it_cannot_convert():
    with pytest.raises(UserError, match=r"nn\.Linear"):
        converted(nn.Sequential(nn.Conv1d(3, 3, 1)))
    net = network()
    converted(net)
    with pytest.raises(UserError, match="already"):
        converted(net)
    net = network()
    net.bert.encoder.layer[1].output.dense = nn.Sequential(net.bert.encoder.layer[1].output.dense)
    with pytest.raises(UserError, match=r"layer\.1, ffn_out: Sequential"):
        converted(net)
    assert type(net.bert.encoder.layer[0]).__name__ == "BertLayer"
    with pytest.raises(UserError, match="decoder"):
        converted(network(is_decoder=True))
    net = network()
    net.bert.encoder.layer[0].intermediate.intermediate_act_fn = nn.PReLU()
    with pytest.raises(UserError, match="PReLU"):
        converted(net)


def test_what_it_cannot_run():
    net, data = network(attn_implementation="eager"), batch()
    converted(net)
    with pytest.raises(UserError, match="probabilities"):
        net(**data, output_attentions=True)
    causal = torch.ones(5, 1, 17, 17).tril().bool()
    with pytest.raises(UserError, match="every query"):
        net.bert.encoder.layer[0](torch.randn(5, 17, 96), causal)
    with pytest.raises(UserError, match="shape"):
        net.bert.encoder.layer[0](torch.randn(5, 17, 96), torch.ones(5, 4, 17, 17))


def test_modules_inside_a_layer_are_not_called_so_a_hook_on_one_is_refused():
    net, data = network(attn_implementation="eager"), batch()
    net(**data, output_hidden_states=True, output_attentions=True)  # leaves hooks of transformers behind
    converted(net, store="8bit")
    gradients(net, data)
    inner = net.bert.encoder.layer[0]
    for attach in (inner.output.dense.register_forward_pre_hook, inner.attention.output.register_forward_hook):
        handle = attach(lambda *_: None)
        with pytest.raises(UserError, match=r"output.*hook"):
            net(**data)
        net.eval()
        net(**data)
        net.train()
        handle.remove()
    gradients(net, data)


def test_attention_scores_cannot_be_distilled():
    net = network()
    converted(net)
    with recorded(net, {0: "bert.encoder.layer.0.attention.self"}), pytest.raises(UserError, match="attention scores"):
        net(**batch())
    gradients(net, batch())


def test_a_changed_input_is_packed_anew():
    """A hook that changes what one layer hands to the next must be seen, whether in place or not."""
    data = batch()
    for change in (lambda y: y * 1.5, lambda y: y.mul_(1.5)):
        nets = [network(), network()]
        converted(nets[1])
        for net in nets:
            net.bert.encoder.layer[0].register_forward_hook(lambda module, args, y, change=change: change(y))
        assert error(gradients(nets[1], data)[1], gradients(nets[0], data)[1]) < 1e-6
