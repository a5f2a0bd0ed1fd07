"""First-order importance: against autograd on real gates, for any size of batch; and labels drawn from predictions."""

import pytest
import torch
from scipy import stats

from keepfrac.models.cut import counts_of, encoder_layers
from keepfrac.prune.attach import FixedGates, attach, gates_of
from keepfrac.prune.importance import drawn_labels, gate_gradients, within
from keepfrac.prune.structure import LayerStructure, Structure
from tests.tiny import inputs, tiny

LABELS = torch.tensor([0, 2, 1, 1, 0, 2])


def rows(batch: dict, start: int, end: int) -> dict:
    return {name: tensor[start:end] for name, tensor in batch.items()}


def loss_of(net):
    def loss(batch):
        batch = dict(batch)
        labels = batch.pop("labels")
        return torch.nn.functional.cross_entropy(net(**batch).logits, labels, reduction="sum")

    return loss


def scored(net, size: int):
    batch = {**inputs(rows=6), "labels": LABELS}
    batches = [rows(batch, start, start + size) for start in range(0, 6, size)]
    return gate_gradients(net, encoder_layers(net), batches, loss_of(net))


def by_autograd(net):
    """One row at a time, the gradient of gates that stand at 1."""
    layers, counts = encoder_layers(net), counts_of(net)
    heads = [torch.ones(c.heads, requires_grad=True) for c in counts]
    neurons = [torch.ones(c.neurons, requires_grad=True) for c in counts]
    handles = attach(net, layers, FixedGates(heads=heads, neurons=neurons))
    totals = [torch.zeros_like(z) for z in (*heads, *neurons)]
    batch = {**inputs(rows=6), "labels": LABELS}
    for i in range(6):
        found = torch.autograd.grad(loss_of(net)(rows(batch, i, i + 1)), [*heads, *neurons])
        totals = [total + gradient.abs() for total, gradient in zip(totals, found, strict=True)]
    for handle in handles:
        handle.remove()
    means = [total.double() / 6 for total in totals]
    return means[: len(heads)], means[len(heads) :]


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_it_is_the_gradient_of_gates(family):
    net = tiny(family)
    found, (heads, neurons) = scored(net, 3), by_autograd(net)
    for one, other in zip([*found.heads, *found.neurons], [*heads, *neurons], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)
        assert one.max() > 0
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize("size", [1, 2, 6])
def test_the_size_of_a_batch_changes_nothing(size):
    net = tiny()
    found, other = scored(net, size), scored(net, 3)
    for one, two in zip([*found.heads, *found.neurons], [*other.heads, *other.neurons], strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-7)


def test_a_frozen_model_is_scored_alike():
    net = tiny()
    free = scored(net, 3)
    frozen = scored(net.requires_grad_(False), 3)
    for one, two in zip([*free.heads, *free.neurons], [*frozen.heads, *frozen.neurons], strict=True):
        torch.testing.assert_close(one, two)


def test_what_is_masked_has_no_importance_and_the_rest_is_that_of_the_masked_model():
    net = tiny()
    kept = LayerStructure((0, 3), tuple(range(0, 48, 2)))
    structure = Structure((kept, kept, LayerStructure((), (1,))))
    handles = attach(net, encoder_layers(net), gates_of(structure, counts_of(net)))
    found = scored(net, 3)
    assert found.heads[0][[1, 2]].tolist() == [0.0, 0.0] and found.heads[0][[0, 3]].min() > 0
    assert not found.heads[2].any() and found.neurons[1][1::2].max() == 0
    for handle in handles:
        handle.remove()
    assert not torch.allclose(found.heads[0][[0, 3]], scored(net, 3).heads[0][[0, 3]])


def test_drawn_classes_have_the_shares_that_are_predicted():
    logits = torch.tensor([[0.0, 1.0, -1.0]]).expand(20_000, 3)
    labels = drawn_labels(logits, torch.rand(20_000, 3).double(), "classification")
    shares = torch.bincount(labels, minlength=3) / 20_000
    torch.testing.assert_close(shares, logits[0].softmax(-1), atol=0.015, rtol=0)


def test_drawn_labels_of_several_are_independent_sigmoids():
    logits = torch.tensor([[0.0, 2.0, -2.0]]).expand(20_000, 3)
    labels = drawn_labels(logits, torch.rand(20_000, 3).double(), "multi_label")
    torch.testing.assert_close(labels.mean(0), logits[0].sigmoid(), atol=0.015, rtol=0)
    assert labels.dtype == torch.float32 and labels.shape == logits.shape


def test_drawn_scores_are_normal_around_the_prediction():
    labels = drawn_labels(torch.full((5_000, 1), 3.0), torch.rand(5_000, 1).double(), "regression")
    assert stats.kstest(labels.numpy() - 3.0, "norm").pvalue > 1e-3


def test_a_structure_within_a_structure():
    outer = Structure((LayerStructure((1, 3), (0, 5, 7)), LayerStructure((0,), ())))
    inner = Structure((LayerStructure((1,), (0, 2)), LayerStructure((), ())))
    assert within(outer, inner) == Structure((LayerStructure((3,), (0, 7)), LayerStructure((), ())))
