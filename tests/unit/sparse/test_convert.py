"""Whole models with sites: bytes, gradients, padding, checkpointing, resuming, saving."""

import copy

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from keepfrac.errors import UserError
from keepfrac.measurement.costs import saved_bytes
from keepfrac.sparse.context import Draw, Padding
from keepfrac.sparse.convert import sparsify
from keepfrac.sparse.layers.linear import SparseLinear
from keepfrac.sparse.selection.selectors import Selector
from tests.unit.sparse.nets import gradients, small_batch, small_net
from tests.unit.sparse.oracle import kept_part, substituted
from tests.unit.sparse.test_keeping import SELECTORS, names

FAMILIES = ["bert", "roberta", "distilbert"]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("selector", SELECTORS, ids=names)
def test_gradients_of_a_model_equal_autograd_with_the_kept_parts_saved(selector, attention, padded):
    batch = small_batch(padded)
    dense, net = small_net(attention=attention).double(), small_net(attention=attention).double()
    handle = sparsify(net, ("linear",), selector, seed=7)
    net(**batch).loss.backward()

    inputs = {}
    hooks = [
        module.register_forward_pre_hook(lambda m, args, name=name: inputs.__setitem__(name, args[0].detach()))
        for name, module in dense.named_modules()
        if isinstance(module, nn.Linear)
    ]
    dense(**batch)
    for hook in hooks:
        hook.remove()
    padding = Padding.of(batch["attention_mask"])
    pairs = []
    for site in handle.sites:
        if not site.saved_elsewhere:
            x = inputs[site.name]
            pairs.append((x.flatten(0, 1), kept_part(x, selector, padding, Draw(7, site.number, 1)).flatten(0, 1)))
    with substituted(*pairs):
        dense(**batch).loss.backward()
    expected, actual = gradients(dense), gradients(net)
    assert expected.keys() == actual.keys()
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_finds_its_linears_and_keeps_its_names(family):
    net = small_net(family)
    keys = list(net.state_dict())
    parameters = [id(p) for p in net.parameters()]
    handle = sparsify(net, ("linear",), Selector(0.3), seed=0)
    assert list(net.state_dict()) == keys
    assert [id(p) for p in net.parameters()] == parameters
    assert sum(isinstance(m, SparseLinear) for m in net.modules()) == 12
    net(**small_batch()).loss.backward()
    assert len(handle.report()) == 2 * 4  # query, key and value are one
    assert handle.kept() == {
        "asked": 0.3,
        "achieved": pytest.approx(0.31, abs=0.02),
        "unit": "saved activations",
        "of": "columns of the inputs of 12 linears",
        "fallbacks": 0,
        "pinned": 0,
    }
    handle.check()


def test_dx_below_the_layers_is_exact():
    """Linear sites leave every gradient but those of their weights as it was."""
    dense, net, batch = small_net(), small_net(), small_batch()
    sparsify(net, ("linear",), Selector(0.1, rule="random"), seed=0)
    for model in (dense, net):
        model(**batch).loss.backward()
    sparse_weights = {f"{n}.weight" for n, m in net.named_modules() if isinstance(m, SparseLinear)}
    for name, gradient in gradients(dense).items():
        if name not in sparse_weights:
            assert torch.equal(gradients(net)[name], gradient), name


def error_of_dx(sites, keep_frac):
    """Relative error of the gradient that reaches the embeddings."""
    found, batch = [], small_batch()
    for chosen in ((), sites):
        net = small_net()
        with torch.no_grad():  # attention that is far from uniform, as a trained model's is
            for layer in net.bert.encoder.layer:
                for linear in (layer.attention.self.query, layer.attention.self.key, layer.attention.self.value):
                    linear.weight.mul_(25)
        if chosen:
            sparsify(net, chosen, Selector(keep_frac, unit="element", scope="sample", rule="top"), seed=0)
        reached = []
        net.bert.embeddings.register_forward_hook(lambda m, a, out, reached=reached: reached.append(out))
        grad = torch.autograd.grad(net(**batch).loss, reached)[0]
        found.append(grad)
    return float((found[1] - found[0]).norm() / found[0].norm())


@pytest.mark.parametrize(
    ("sites", "limits"),
    [
        (("linear",), (0.0, 0.0, 0.0)),
        (("attention",), (0.8, 0.4, 0.05)),
        (("softmax",), (0.8, 0.06, 0.001)),
        (("layer_norm",), (0.25, 0.1, 0.015)),
        (("linear", "attention", "softmax", "layer_norm"), (0.85, 0.4, 0.05)),
    ],
)
def test_error_of_dx_is_none_for_linears_and_falls_with_keep_frac_elsewhere(sites, limits):
    errors = [error_of_dx(sites, keep_frac) for keep_frac in (0.1, 0.5, 0.9)]
    assert errors == sorted(errors, reverse=True)
    assert all(error <= limit for error, limit in zip(errors, limits, strict=True)), errors


def test_sdpa_leaves_the_attention_output_dense_and_says_so():
    net = small_net(attention="sdpa")
    handle = sparsify(net, ("linear",), Selector(0.3), seed=0)
    net(**small_batch()).loss.backward()
    pinned = [row for row in handle.report() if row["pinned"]]
    assert len(pinned) == 2
    assert all("sdpa" in row["fallback"] for row in pinned)
    assert handle.kept()["fallbacks"] == 0
    assert handle.kept()["of"] == "columns of the inputs of 10 linears"
    assert handle.kept()["pinned"] == 2


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_linear_that_cannot_save_may_be_allowed(attention):
    net = small_net(attention=attention, act="tanh")
    assert sparsify(net, ("linear",), Selector(0.3), seed=0, allow_fallback=True).kept()["fallbacks"] == 2


def test_a_fallback_in_training_is_counted_and_check_names_it():
    net = small_net()
    handle = sparsify(net, ("linear",), Selector(0.98, unit="element"), seed=0)
    net(**small_batch(padded=False)).loss.backward()
    assert handle.kept()["fallbacks"] == 8
    assert handle.kept()["achieved"] == 1.0
    with pytest.raises(UserError, match=r"layer\.0\.attention\.self\.query .*not be smaller"):
        handle.check()


INVERSE = Selector(0.3, rule="random", scale="inverse")


@pytest.mark.parametrize(
    ("net", "sites", "selector", "said"),
    [
        ({}, (), Selector(0.3), "choose among"),
        ({}, ("linears",), Selector(0.3), "choose among"),
        ({}, ("activation",), Selector(0.3), "hidden_act=relu"),
        ({"act": "relu"}, ("activation",), Selector(0.3), "add site linear"),
        ({}, ("dropout",), Selector(0.3), "no dropout"),
        ({"attention": "sdpa"}, ("attention",), Selector(0.3), r"never holds.*eager"),
        ({"attention": "sdpa"}, ("softmax",), Selector(0.3), r"never holds.*eager"),
        ({"act": "tanh"}, ("linear",), Selector(0.3), r"Tanh.* saves this tensor itself"),
        ({"act": "tanh", "attention": "sdpa"}, ("linear",), Selector(0.3), r"Tanh.* saves this tensor itself"),
        ({}, ("linear", "softmax"), INVERSE, r"site softmax, .* squared"),
        ({}, ("linear", "layer_norm"), INVERSE, r"site layer_norm, .* squared"),
    ],
)
def test_sites_without_effect_and_biased_ones_are_refused(net, sites, selector, said):
    with pytest.raises(UserError, match=said):
        sparsify(small_net(**net), sites, selector, seed=0)


@pytest.mark.parametrize("site", ["softmax", "layer_norm"])
def test_a_site_that_stays_whole_says_so(site):
    net = small_net(dropout=0.1)
    handle = sparsify(net, (site,), Selector(0.99), seed=0)
    net(**small_batch(padded=False)).loss.backward()
    assert all(row["fallback"] and row["achieved"] == 1 for row in handle.report())
    assert all(row["bytes_dense"] == row["bytes_kept"] > 0 for row in handle.report())


def test_the_state_does_not_change_with_later_steps():
    net = small_net()
    handle = sparsify(net, ("linear",), Selector(0.1, rule="random"), seed=0)
    net(**small_batch()).loss.backward()
    state, before = handle.state(), handle.never_selected()
    net(**small_batch()).loss.backward()
    assert handle.never_selected() < before
    handle.load_state(state)
    net(**small_batch()).loss.backward()
    handle.load_state(state)
    assert handle.never_selected() == before


def test_site_activation_needs_a_linear_that_frees_its_input():
    net = small_net(act="relu")
    for layer in net.bert.encoder.layer:
        layer.output.dense.weight.requires_grad_(False)
    dense = saved_bytes(net, lambda: net(**small_batch()).loss)
    sparsify(net, ("activation",), Selector(0.3), seed=0)
    assert saved_bytes(net, lambda: net(**small_batch()).loss) < dense


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("sites", [("linear",), ("linear", "attention", "softmax", "layer_norm")])
@pytest.mark.parametrize("rule", ["random", "sampled"])
def test_gradient_checkpointing_gives_the_same_gradients(rule, sites, reentrant):
    batch, results = small_batch(), []
    for checkpointing in (False, True):
        net = small_net(dropout=0.1, act="relu")
        sparsify(net, sites, Selector(0.3, rule=rule), seed=0)
        if checkpointing:
            net.activation_checkpointing_enable({"use_reentrant": reentrant})
        torch.manual_seed(4)
        for _ in range(2):
            net(**batch).loss.backward()
        results.append(gradients(net))
    assert results[0].keys() == results[1].keys()
    for name in results[0]:
        torch.testing.assert_close(results[0][name], results[1][name], msg=name)


def test_gradient_checkpointing_leaves_the_random_numbers_alone():
    states = []
    for sparse in (False, True):
        net = small_net(dropout=0.1)
        if sparse:
            sparsify(net, ("linear",), Selector(0.3, rule="random"), seed=0)
        torch.manual_seed(4)
        net(**small_batch()).loss.backward()
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_sites_have_numbers_of_their_own():
    handle = sparsify(small_net(), ("linear", "attention", "softmax", "layer_norm"), Selector(0.3), seed=0)
    assert len({site.number for site in handle.sites}) == len(handle.sites)
    assert len(handle.sites) == 2 * (4 + 3 + 1 + 2)


def test_columns_never_selected_are_counted():
    shares = {}
    for coverage in (0.0, 0.5):
        net = small_net()
        handle = sparsify(net, ("linear",), Selector(0.25, coverage=coverage, rule="top"), seed=0)
        assert handle.never_selected() is None
        for _ in range(8):
            net(**small_batch()).loss.backward()
        shares[coverage] = handle.never_selected()
    assert shares[0.0] > 0.4  # the same columns each time
    assert shares[0.5] == 0.0  # an eighth in turn


def test_other_forward_passes_do_not_disturb_training():
    net, batch = small_net(), small_batch()
    handle = sparsify(net, ("linear",), Selector(0.3, rule="random"), seed=0)
    net(**batch).loss.backward()
    before = handle.state()["step"]
    with torch.no_grad():
        net(**batch)
    net.eval()(**batch)
    net.train()
    assert handle.state()["step"] == before
    net(batch["input_ids"], batch["attention_mask"], labels=batch["labels"])  # positional mask
    assert handle.state()["step"] == before + 1
    assert handle.context.padding(4, 16).counts == (16, 11, 7, 3)


def test_a_copy_trains_alone():
    net, batch = small_net(), small_batch()
    handle = sparsify(net, ("linear", "attention"), Selector(0.3, rule="random"), seed=0)
    twin = copy.deepcopy(net)
    twin(**batch).loss.backward()
    assert handle.context.step == 0
    net(**batch).loss.backward()
    assert all(torch.equal(a, b) for a, b in zip(gradients(net).values(), gradients(twin).values(), strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_saved_folder_is_plain_hugging_face(family, tmp_path):
    net = small_net(family, act="relu")
    sparsify(net, ("linear", "attention", "softmax", "layer_norm"), Selector(0.3), seed=0)
    net.save_pretrained(tmp_path)
    assert "keepfrac" not in (tmp_path / "config.json").read_text()
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert type(plain.get_submodule(plain.base_model_prefix)).__module__.startswith("transformers")
    assert not any(isinstance(m, SparseLinear) for m in plain.modules())
    batch = small_batch()
    torch.testing.assert_close(plain(**batch).logits, net.eval()(**batch).logits)


def test_frozen_layers_save_nothing_of_their_inputs():
    net, batch = small_net(), small_batch()
    for name, parameter in net.named_parameters():
        parameter.requires_grad_("attention.self" in name)
    handle = sparsify(net, ("linear",), Selector(0.3), seed=0)
    net(**batch).loss.backward()
    touched = [row for row in handle.report() if row["bytes_kept"]]
    assert [row["site"].rsplit(".", 1)[1] for row in touched] == ["query", "query"]


# The compiler looks at attributes of tensors on its way, and warns of its own doing.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("sites", [("linear",), ("linear", "attention", "softmax", "layer_norm")])
def test_a_compiled_model_has_the_same_gradients(sites):
    expected, batch = {}, small_batch()
    for compiled in (False, True):
        net = small_net(act="relu")
        sparsify(net, sites, Selector(0.3, unit="token", rule="random"), seed=1)
        model = torch.compile(net, backend="eager") if compiled else net
        model(**batch).loss.backward()
        expected[compiled] = gradients(net)
    for name, gradient in expected[False].items():
        torch.testing.assert_close(expected[True][name], gradient, msg=name)
