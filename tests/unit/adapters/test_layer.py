"""Updates of frozen linears: against dense autograd, against PEFT, and by what they leave unmade."""

import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BertConfig, BertForSequenceClassification
from transformers.pytorch_utils import Conv1D

from keepfrac.adapters.layer import AdaptedLinear, Update, scale_of
from keepfrac.adapters.selection import select_positions
from keepfrac.adapters.surgery import Target, adapted, attach, detach, freeze_but, merge, part_of_weight, trainable
from keepfrac.errors import UserError
from keepfrac.measurement.costs import saved_storages
from keepfrac.models.anatomy import anatomy
from keepfrac.models.targets import targets_of
from tests.tiny import tiny

INPUTS, OUTPUTS, N = 12, 30, 7


def module(kind: str, dropout: float = 0.0) -> AdaptedLinear:
    """An adapted linear in float64 whose updates are not zero: whole, or (Conv1D) two slices of ten outputs."""
    base = Conv1D(OUTPUTS, INPUTS) if kind == "conv1d" else nn.Linear(INPUTS, OUTPUTS, bias=kind != "no_bias")
    slices = {"query": (0, 10), "value": (20, 10)} if kind == "conv1d" else {"query": (0, OUTPUTS)}
    updates = {}
    for role, (start, size) in slices.items():
        positions = torch.randperm(size * INPUTS)[:N].sort().values
        update = Update(size, INPUTS, 3, 1.7, positions, start)
        nn.init.normal_(update.u), nn.init.normal_(update.v), nn.init.normal_(update.values)
        updates[role] = update
    return AdaptedLinear(base.double(), updates, dropout).double()


def dense(own: AdaptedLinear, x: torch.Tensor) -> torch.Tensor:
    """The same by whole matrices, which autograd differentiates."""
    weight = own.oriented(own.weight + own.delta())
    return nn.functional.linear(x, weight, own.bias)


@pytest.mark.parametrize("kind", ["linear", "no_bias", "conv1d"])
def test_output_and_every_gradient_are_those_of_whole_matrices(kind):
    own, x = module(kind), torch.randn(2, 5, INPUTS, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(own(x), dense(own, x))
    wanted, gradient = [x, *own.parameters()], torch.randn(2, 5, OUTPUTS, dtype=torch.float64)
    found = torch.autograd.grad(own(x), wanted, gradient)
    torch.testing.assert_close(found, torch.autograd.grad(dense(own, x), wanted, gradient))


def test_dropout_is_on_the_updates_input_alone():
    own, x = module("linear", dropout=0.5), torch.randn(4, INPUTS, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(1)
    y = own(x)
    torch.manual_seed(1)
    dropped = nn.functional.dropout(x, 0.5)
    expected = nn.functional.linear(x, own.weight, own.bias) + dropped @ own.delta().t()
    torch.testing.assert_close(y, expected)
    g = torch.randn_like(y)
    torch.testing.assert_close(
        torch.autograd.grad(y, [x, *own.updates.parameters()], g),
        torch.autograd.grad(expected, [x, *own.updates.parameters()], g),
    )
    torch.testing.assert_close(own.eval()(x), dense(own, x))


class Largest(TorchDispatchMode):
    """The elements of the largest tensor that an operation made."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        views = func.is_view or func in (torch.ops.aten.detach.default,)
        if isinstance(made, torch.Tensor) and not views:
            self.elements = max(self.elements, made.numel())
        return made


def test_s2_has_n_gradients_and_nothing_of_the_weights_size_is_made():
    size, rows = 256, 8
    net = nn.Sequential(nn.Linear(size, size))
    target = Target("0", "query")
    positions = select_positions(net[0].weight.detach(), 64, "random", 4, torch.Generator())
    attach(net, [target], 4, 2.0, positions={target: positions})
    freeze_but(net, ())
    x = torch.randn(rows, size, requires_grad=True)
    with saved_storages(net) as storages, Largest() as forward:
        y = net(x)
    assert sum(storages.values()) == 4 * rows * (size + 4)  # x, and V x
    loss = y.square().sum()
    with Largest() as backward:
        loss.backward()
    assert max(forward.elements, backward.elements) == rows * size  # of x and y: a weight has 256 * 256
    update = net[0].updates["query"]
    assert update.values.grad.shape == (64,) and update.values.grad.abs().min() > 0
    assert update.positions.dtype == torch.int32
    assert net[0].weight.grad is None
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad])
    optimizer.step()
    assert optimizer.state[update.values]["exp_avg"].shape == (64,)


def test_bf16_autocast_is_near_and_gradients_come_in_the_parameters_dtype():
    own = module("linear").float()
    x = torch.randn(6, INPUTS, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = own(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), dense(own, x), rtol=0.05, atol=0.1)
    y.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in [x, *own.parameters()])


def test_a_cast_of_a_frozen_weight_is_no_activation():
    net = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False))
    net[1].requires_grad_(False)
    with saved_storages(net) as storages, torch.autocast("cpu", torch.bfloat16):
        net(torch.randn(8, 64))
    assert sum(storages.values()) == 2 * 8 * 64  # the input of the first, whose weight learns


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_constrained_training_sees_what_is_merged(kind):
    own, x = module(kind), torch.randn(3, INPUTS, dtype=torch.float64)
    mask = torch.rand(own.weight.shape) > 0.5
    own.reserve_mask()
    own.constrain(mask)
    y = own(x)
    y.sum().backward()
    gradient = own.updates["query"].values.grad
    column, row = ((own.updates["query"].positions % INPUTS).long(), (own.updates["query"].positions // INPUTS).long())
    assert torch.equal(gradient == 0, ~own.oriented(mask)[row, column])
    net = nn.Sequential(own)
    masks = merge(net, {"0.weight": mask}, keep_zeros=True)
    torch.testing.assert_close(net(x), y)
    assert torch.all(net[0].weight[~mask] == 0) and masks.keys() == {"0.weight"}


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_merges_and_their_masks(kind):
    own, x = module(kind), torch.randn(3, INPUTS, dtype=torch.float64)
    mask = torch.rand(own.weight.shape) > 0.5
    own.weight.data.masked_fill_(~mask, 0)
    y, delta, weight = own(x), own.delta().detach(), own.weight.detach().clone()
    sparse, whole = nn.Sequential(copy.deepcopy(own)), nn.Sequential(own)
    left = merge(whole, {"0.weight": mask}, keep_zeros=False)
    torch.testing.assert_close(whole(x), y)
    if kind == "conv1d":  # the middle third has no update: its zeros hold
        assert torch.equal(left["0.weight"], mask | (delta.abs().sum(0) > 0)) and not left["0.weight"].all()
    else:
        assert left == {}
    assert merge(sparse, {"0.weight": mask}, keep_zeros=True)["0.weight"] is mask
    torch.testing.assert_close(sparse[0].weight, (weight + delta) * mask)
    assert type(sparse[0]) is (Conv1D if kind == "conv1d" else nn.Linear)


def test_detach_gives_back_the_model_with_what_it_learnt():
    net = nn.Sequential(nn.Linear(8, 8))
    attach(net, [Target("0", "query")], 2, 1.0)
    again = copy.deepcopy(net)
    with torch.no_grad():
        again[0].bias.fill_(3.0)
    taken = detach(again)
    assert type(again[0]) is nn.Linear and torch.all(again[0].bias == 3.0) and "query" in taken["0"]
    assert torch.all(net[0].bias != 3.0)


def test_bert_base_of_the_paper_trains_592898_parameters():
    with torch.device("meta"):
        net = BertForSequenceClassification(BertConfig(num_labels=2))
    targets = targets_of(net, ["query", "value"])
    positions = {
        t: select_positions(part_of_weight(net.get_submodule(t.path), t), 64, "random", 16, torch.Generator())
        for t in targets
    }
    attach(net, targets, 16, scale_of(32, 16), positions=positions)
    freeze_but(net, anatomy(net).head)
    assert trainable(net) == 592_898
    assert sum(len(m.parts()[0].values) for m in adapted(net).values()) == 24 * 64


def test_adapted_linears_equal_peft_given_the_same_factors():
    peft = pytest.importorskip("peft")
    torch.manual_seed(3)
    ours = tiny(layers=2)
    theirs = copy.deepcopy(ours)
    targets = targets_of(ours, ["query", "value"])
    attach(ours, targets, 4, 2.0)
    freeze_but(ours, ())
    settings = peft.LoraConfig(r=4, lora_alpha=8, target_modules=[t.path for t in targets])
    peft.inject_adapter_in_model(settings, theirs)
    for path, own in adapted(ours).items():
        update, other = own.parts()[0], theirs.get_submodule(path)
        with torch.no_grad():
            update.u.normal_()
            other.lora_A["default"].weight.copy_(update.v)
            other.lora_B["default"].weight.copy_(update.u)
    ids = torch.randint(5, 60, (4, 9))
    labels = torch.tensor([0, 1, 1, 0])
    one, two = ours(input_ids=ids, labels=labels), theirs(input_ids=ids, labels=labels)
    torch.testing.assert_close(one.logits, two.logits, rtol=0, atol=1e-6)
    one.loss.backward(), two.loss.backward()
    for path, own in adapted(ours).items():
        update, other = own.parts()[0], theirs.get_submodule(path)
        torch.testing.assert_close(update.v.grad, other.lora_A["default"].weight.grad, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(update.u.grad, other.lora_B["default"].weight.grad, rtol=1e-5, atol=1e-6)
        other.merge()
    merge(ours, {}, keep_zeros=True)
    for target in targets:
        mine, base = ours.get_submodule(target.path), theirs.get_submodule(target.path).get_base_layer()
        torch.testing.assert_close(mine.weight, base.weight, rtol=0, atol=1e-6)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(8, 8), nn.Linear(8, 8, bias=False)
        self.head.weight = self.embedding.weight


def test_what_cannot_be_adapted_is_said():
    with pytest.raises(UserError, match=r"shares its weight with embedding\.weight"):
        attach(Tied(), [Target("head", "head")], 2, 1.0)
    quantised = nn.Sequential(nn.Linear(8, 8))
    quantised[0].weight = nn.Parameter(torch.zeros(8, 8, dtype=torch.int8), requires_grad=False)
    with pytest.raises(UserError, match=r"quantised .*int8"):
        attach(quantised, [Target("0", "0")], 2, 1.0)
    net = nn.Sequential(nn.Linear(8, 4), nn.ReLU())
    for targets, said in (
        ([Target("1", "1")], "is a ReLU"),
        ([Target("2", "2")], "has no part '2'"),
        ([], "nothing would be adapted"),
    ):
        with pytest.raises(UserError, match=said):
            attach(net, targets, 2, 1.0)
    with pytest.raises(UserError, match="0: rank 5 for a 4 x 8 weight: it must be 1 to 4"):
        attach(net, [Target("0", "0")], 5, 1.0)
    attach(net, [Target("0", "0")], 4, 1.0)
    with pytest.raises(UserError, match="has an update already"):
        attach(net, [Target("0", "0")], 4, 1.0)
    with pytest.raises(UserError, match="alpha above 0"):
        scale_of(0, 4)


def test_a_tied_head_does_not_learn():
    net = nn.Sequential(Tied(), nn.Linear(8, 8))
    attach(net, [Target("1", "1")], 2, 1.0)
    freeze_but(net, ["0.head"])
    assert not net[0].embedding.weight.requires_grad and trainable(net) == 2 * 2 * 8
