"""`late` on networks that have no blocks: linears choose rows, all else is stored as autograd saves it."""

import copy

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from keepfrac.errors import UserError
from keepfrac.measurement.costs import saved_bytes
from keepfrac.sparse.act8bit.allocation import allocate_formats
from keepfrac.sparse.save_less import save_less
from tests.tiny import SIZES
from tests.unit.sparse.act8bit.nets import KERNELS, batch, converted, error, gradients, network

SHAPES = {  # families that attend by themselves, and one without a row
    "mpnet": {},
    "deberta-v2": {key: value for key, value in SIZES["deberta-v2"].items() if "size" not in key},
    "opt": {},
}
RAGGED = {"rows": 8, "length": 32, "lengths": [32, 9, 17, 30, 4, 32, 1, 32]}


def net_of(name, p=0.0, **config):
    """The same weights each time."""
    if name != "opt":
        return network(name, p, **{**SHAPES[name], "eos_token_id": 3, **config})
    sizes = {"hidden_size": 96, "word_embed_proj_dim": 96, "ffn_dim": 200, "num_attention_heads": 4}
    sizes |= {"num_hidden_layers": 2, "vocab_size": 100, "max_position_embeddings": 140, "pad_token_id": 1}
    torch.manual_seed(1)
    return AutoModelForSequenceClassification.from_config(
        AutoConfig.for_model("opt", **sizes, dropout=p, **config)
    ).train()


def gradients_inside(net, data):
    """The gradients of the layers' matrices: the classifier's would hide their errors."""
    return {name: one for name, one in gradients(net, data)[1].items() if ".layer" in name and one.dim() == 2}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(("store", "limit"), [("exact", 1e-5), ("bf16", 5e-3), ("8bit", 0.03)])
def test_all_rows_are_autograd_but_for_the_rounding(name, store, limit):
    data = batch(**RAGGED)
    dense, net = net_of(name), net_of(name)
    handle = converted(net, store=store, skip_zero_rows=store != "exact")
    assert torch.equal(net(**data).logits, dense(**data).logits) or store == "exact"
    assert error(gradients_inside(net, data), gradients_inside(dense, data)) < limit
    handle.restore()
    assert [type(one) for one in net.modules()] == [type(one) for one in dense.modules()]
    assert error(gradients(net, data)[1], gradients(dense, data)[1]) == 0


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_fewer_bytes_are_saved(kernels, name, precision):
    data, net = batch(**RAGGED), net_of(name, p=0.1)

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            return net(**data).loss

    dense = saved_bytes(net, step)
    handle = converted(net, 0.3, store="8bit", kernels=kernels)
    found = saved_bytes(net, step)
    assert found < (0.4 if precision == "fp32" else 0.6) * dense
    rows = handle.report()
    assert 0 < sum(row["bytes_kept"] for row in rows) <= found
    assert all(row["bytes_kept"] < row["bytes_dense"] for row in rows if row["bytes_kept"])


@pytest.mark.parametrize("name", SHAPES)
def test_rows_are_chosen_among_real_tokens_and_training_goes_on(name):
    data, net = batch(**RAGGED), net_of(name, p=0.1)
    handle = converted(net, 0.25, store="8bit")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        losses.append(net(**data).loss)
        losses[-1].backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())
        optimizer.step()
    kept = handle.kept()
    assert kept["how"] == "any network" and kept["asked"] == 0.25 and 0.1 < kept["achieved"] < 0.3
    assert losses[0] != losses[1]


def test_the_estimate_is_unbiased():
    data, net = batch(4, 12), net_of("mpnet")
    want = gradients_inside(net, data)
    handle = converted(net, 0.3)
    once, total = gradients_inside(net, data), {name: torch.zeros_like(one) for name, one in want.items()}
    for _ in range(64):
        for name, one in gradients_inside(net, data).items():
            total[name] += one / 64
    assert error(total, want) < 0.3 * error(once, want)
    assert handle.kept()["achieved"] < 0.31


def test_a_resumed_network_chooses_the_same_rows():
    data, net = batch(**RAGGED), net_of("deberta-v2")
    handle = converted(net, 0.2, store="8bit")
    gradients(net, data)
    state, calls = copy.deepcopy(handle.state()), gradients(net, data)[1]
    again = net_of("deberta-v2")
    resumed = converted(again, 0.2, store="8bit")
    assert error(gradients(again, data)[1], calls) > 0.01
    resumed.load_state(state)
    assert error(gradients(again, data)[1], calls) == 0
    assert resumed.kept() == handle.kept()
    with pytest.raises(UserError, match="of 16 linears, the network has 12"):
        converted(net_of("mpnet")).load_state(state)


def test_a_network_of_ones_own_under_two_hooks_at_once():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 128), nn.Sigmoid(), nn.Linear(128, 64), nn.Tanh(), nn.Linear(64, 8))
    dense, x = copy.deepcopy(net), torch.randn(100, 64)
    handle = save_less(net, 1.0)
    twin = copy.deepcopy(net)
    with torch.autograd.graph.save_on_cpu():
        losses = [one(x).square().mean() for one in (net, twin, dense)]
    for loss in losses:
        loss.backward()
    found, of_twin, want = ({name: p.grad for name, p in one.named_parameters()} for one in (net, twin, dense))
    assert 0 < error(found, want) < 0.02 and error(of_twin, found) == 0
    assert handle.kept()["of"] == "real tokens, in 3 linears"
    net.eval()
    assert torch.equal(net(x), dense(x))


def test_a_failed_forward_pass_leaves_no_hooks_behind():
    net = net_of("mpnet")
    converted(net, store="8bit")
    with pytest.raises(IndexError):
        net(input_ids=torch.zeros(2, 4000, dtype=torch.long))
    assert torch._C._autograd._top_saved_tensors_default_hooks(True) is None


def test_dropout_draws_what_it_drew():
    data, dense, net = batch(**RAGGED), net_of("mpnet", p=0.2), net_of("mpnet", p=0.2)
    converted(net)
    found = []
    for one in (dense, net):
        torch.manual_seed(3)
        found.append(gradients_inside(one, data))
    assert error(found[1], found[0]) < 1e-5


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e35])
def test_numbers_without_a_code_stay(value):
    """Nor do they spoil the others of their row."""
    net, x = nn.Sequential(nn.Linear(64, 64)), torch.randn(100, 64)
    x[0, 0] = value
    converted(net, store="8bit")
    net(x).sum().backward()
    torch.testing.assert_close(net[0].weight.grad, x.sum(0).expand(64, 64), equal_nan=True)


def test_what_it_refuses():
    for given, message in (
        ({"store": "mixed"}, "store=mixed.*8bit or store=bf16"),
        ({"context": "recompute"}, "=save"),
    ):
        with pytest.raises(UserError, match=message):
            converted(net_of("mpnet"), **given)
    with pytest.raises(UserError, match=r"nn\.Linear.*Conv1d has none"):
        converted(nn.Conv1d(3, 3, 1))
    net = net_of("mpnet")
    handle = converted(net)
    with pytest.raises(UserError, match="already"):
        converted(net)
    with pytest.raises(UserError, match=r"method\.budget=0\.2: late has no blocks"):
        allocate_formats(net, handle, lambda: net(**batch()).loss, budget=0.2)
