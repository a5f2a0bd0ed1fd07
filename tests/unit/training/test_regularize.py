"""The options of the loop as functions: against torch's own distributions, copies of models, and sums by hand."""

import copy

import pytest
import torch
from torch.distributions import Bernoulli, Categorical, kl_divergence

from keepfrac.errors import UserError
from keepfrac.training.options import (
    EMA,
    FGM,
    add_gradients,
    by_depth,
    check_r_drop,
    depths,
    divergence,
    fgm_direction,
    refuse_without_dropout,
)
from tests.tiny import inputs, tiny


@pytest.mark.parametrize(("problem", "kind"), [("classification", Categorical), ("multi_label", Bernoulli)])
def test_divergence_is_the_mean_of_both_kls(problem, kind):
    one, other = torch.randn(5, 4), torch.randn(5, 4)
    p, q = kind(logits=one), kind(logits=other)
    expected = (kl_divergence(p, q) + kl_divergence(q, p)).mean() / 2
    torch.testing.assert_close(divergence(one, other, problem), expected)


def test_divergence_of_a_regression_is_the_squared_difference_and_of_another_task_refused():
    assert divergence(torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [2.0]]), "regression") == 2.0
    check_r_drop("sequence_classification", "regression")
    with pytest.raises(UserError, match="r_drop on a task of embedding"):
        check_r_drop("embedding", "regression")  # of cosines: there are no logits
    with pytest.raises(UserError, match="r_drop=null"):
        divergence(torch.zeros(1, 2), torch.zeros(1, 2), "masked_lm")


def test_r_drop_without_dropout_is_refused():
    net = tiny()
    refuse_without_dropout(net)
    net.config.hidden_dropout_prob = net.config.attention_probs_dropout_prob = 0.0
    net.config.classifier_dropout = None
    with pytest.raises(UserError, match="this model has none"):
        refuse_without_dropout(net)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_rates_fall_with_depth_and_no_parameter_is_lost(family):
    net = tiny(family)
    strange = torch.nn.Parameter(torch.zeros(2))
    groups = [
        {"params": list(net.parameters()), "lr": 1.0, "clip": 1.0},
        {"params": [strange], "lr": 0.5, "clip": None},
    ]
    divided = by_depth(groups, net, 0.5)
    rate = {p: group["lr"] for group in divided for p in group["params"]}
    assert len(rate) == sum(len(group["params"]) for group in divided) == len(list(net.parameters())) + 1
    words = net.get_input_embeddings().weight
    classifier = next(p for n, p in net.named_parameters() if "classifier" in n)
    of_layers = [{rate[p] for n, p in net.named_parameters() if f".{i}." in n and "layer" in n} for i in range(3)]
    assert of_layers == [{0.125}, {0.25}, {0.5}]
    assert rate[words] == 0.0625 and rate[classifier] == 1.0 and rate[strange] == 0.5
    assert all(
        group["clip"] == (None if group["lr"] == 0.5 and len(group["params"]) == 1 else 1.0) for group in divided
    )
    assert set(depths(net).values()) == {0, 1, 2, 3, 4}


def test_gpt2s_tables_of_words_and_places_are_embeddings():
    net = tiny("gpt2")
    depth = {name: depths(net)[parameter] for name, parameter in net.named_parameters()}
    assert depth["transformer.wte.weight"] == depth["transformer.wpe.weight"] == 0
    assert depth["transformer.h.0.ln_1.weight"] == 1
    top = len(net.transformer.h) + 1
    assert {name for name in depth if depth[name] == top} >= {"transformer.ln_f.weight"}
    assert sum(place == 0 for place in depth.values()) == 2


def test_the_average_is_the_recursion_and_the_own_weights_come_back_bit_for_bit():
    net = torch.nn.Linear(3, 2)
    averages, expected = EMA(net, 0.9), net.weight.detach().clone()
    for step in range(1, 6):
        with torch.no_grad():
            net.weight.add_(torch.randn(2, 3))
        averages.update(net)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * net.weight.detach()
    own = net.weight.detach().clone()
    averages.swap_in(net, None)
    torch.testing.assert_close(net.weight.detach(), expected)
    averages.restore(net)
    assert torch.equal(net.weight, own)
    again = EMA(net, 0.9)
    again.load_state_dict(averages.state_dict())
    assert again.steps == 5 and torch.equal(again.values["weight"], averages.values["weight"])


@pytest.mark.parametrize("head", ["classification", "masked_lm"])
def test_under_attack_the_model_is_the_one_with_shifted_embeddings(head):
    net, batch = tiny(head=head), inputs()
    words = net.get_input_embeddings().weight
    before = words.detach().clone()
    net(**batch).logits.square().sum().backward()
    gradient = words.grad.clone()
    net.zero_grad()
    attack = FGM(0.7)
    attack.watch(net)
    net(**batch).logits.square().sum().backward()
    shifted = copy.deepcopy(net)
    shift = 0.7 * gradient / gradient.norm()
    shifted.get_input_embeddings().weight = torch.nn.Parameter(before + shift)  # of a tied pair the lower one alone
    with attack.on(net):
        attacked = net(**batch).logits
        assert torch.equal(words, before)
    torch.testing.assert_close(attacked, shifted(**batch).logits)
    assert torch.equal(words, before)
    assert torch.equal(net(**batch).logits, tiny_again(net)(**batch).logits)
    assert not torch.equal(attacked, net(**batch).logits)


def tiny_again(net):
    """A copy without hooks, by its weights alone."""
    fresh = type(net)(net.config).eval()
    fresh.load_state_dict(net.state_dict())
    return fresh


def test_an_attack_has_the_length_that_was_asked_for():
    gradient = torch.randn(7, 3)
    assert fgm_direction(gradient, 0.25).norm() == pytest.approx(0.25, rel=1e-5)
    assert not fgm_direction(torch.zeros(2, 2), 1.0).any()
    assert not fgm_direction(torch.full((2, 2), float("inf")), 1.0).any()


def test_embeddings_that_are_not_trained_cannot_be_attacked():
    net = tiny()
    net.get_input_embeddings().weight.requires_grad_(False)
    with pytest.raises(UserError, match="fgm=null"):
        FGM(1.0).watch(net)


def test_gradients_are_added_to_those_that_are_there():
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    weight.square().sum().backward()
    add_gradients(3 * weight.sum(), [weight], synchronise=True)
    assert weight.grad.tolist() == [5.0, 7.0]
