"""What is saved between the passes, counted by storage: BERT-base layers, and the accounting of `report`."""

import pytest
import torch
from transformers import BertConfig, BertModel

from keepfrac.measurement.costs import saved_storages
from tests.unit.sparse.act8bit.nets import batch, converted, network, stack
from tests.unit.sparse.act8bit.test_cut import uneven

BATCH, LENGTH, WIDTH = 32, 128, 768
UNIT = BATCH * LENGTH * WIDTH * 4
DENSE = 16.5 * UNIT  # per layer, with masks of one byte and a fused attention


def base_layers(count):
    config = BertConfig(attn_implementation="sdpa", num_hidden_layers=count, vocab_size=5)  # BERT-base, dropout 0.1
    return BertModel(config, add_pooling_layer=False).train()


@pytest.mark.parametrize(("context", "limit"), [("save", 0.17), ("recompute", 0.155)])
@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_bert_base_layers_keep_a_sixth_of_dense(context, limit, compute):
    net, found = base_layers(2), []
    handle = converted(net, 0.3, store="8bit", context=context)
    x = torch.randn(BATCH, LENGTH, WIDTH, requires_grad=True)
    with saved_storages(net) as storages, torch.autocast("cpu", compute, enabled=compute != torch.float32):
        for layer in net.encoder.layer:
            x = layer(x)
            found.append(sum(storages.values()))
    rows = handle.report()
    assert sum(row["bytes_kept"] for row in rows) == pytest.approx(found[1], rel=0.01)
    assert found[1] <= 2 * limit * DENSE
    # a layer after the first one has its input stored by the layer before
    assert found[1] - found[0] <= (limit - 0.008) * DENSE
    if compute == torch.float32:
        assert sum(row["bytes_dense"] for row in rows) == pytest.approx(2 * DENSE, rel=0.01)


NETS = {
    "bert": lambda: network(layers=3),
    "pre-norm": lambda: network("roberta-prelayernorm", p=0.1, layers=3),
    "cut": lambda: uneven("bert"),
}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("store", ["exact", "bf16", "mixed", "8bit"])
@pytest.mark.parametrize("context", ["save", "recompute"])
def test_the_accounting_is_what_is_saved(name, store, context):
    net = NETS[name]()
    handle = converted(net, store=store, context=context)
    x = torch.randn(4, 32, 96, requires_grad=True)
    with saved_storages(net) as storages:
        y = stack(net, x)
    kept = sum(row["bytes_kept"] for row in handle.report())
    own_input = x.nbytes if store == "exact" and name != "pre-norm" else 0  # the network's, saved as it is
    assert kept + own_input == pytest.approx(sum(storages.values()), rel=0.01)
    assert all(0 < row["bytes_kept"] < row["bytes_dense"] for row in handle.report() if name == "pre-norm")
    y.sum().backward()


def test_bytes_do_not_depend_on_keep_frac():
    found = set()
    for keep_frac in (0.1, 0.5, 1.0):
        net = network()
        converted(net, keep_frac=keep_frac, store="8bit")
        with saved_storages(net) as storages:
            net(**batch())
        found.add(sum(storages.values()))
    assert len(found) == 1


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_the_pooler_does_not_keep_the_last_hidden_state(family):
    net = network(family)
    converted(net)
    with saved_storages(net) as storages:
        hidden = net.base_model(batch()["input_ids"]).last_hidden_state
        if family == "distilbert":
            net.pre_classifier(hidden[:, 0])
    assert hidden.untyped_storage().data_ptr() not in storages
