"""The two blocks against dense autograd: gradcheck, the stock layer, and the same formulas with the same masks."""

import pytest
import torch
import torch.nn.functional as F

from keepfrac.errors import UserError
from keepfrac.models.anatomy import anatomy
from keepfrac.sparse.act8bit.calls import OUTPUT, PROBABILITIES
from keepfrac.sparse.kernels.plain import keep_mask
from keepfrac.tensors.rng import seed63
from tests.unit.sparse.act8bit.nets import FAMILIES, KERNELS, RAGGED, batch, converted, error, gradients, network, stack

PRE_NORM = "roberta-prelayernorm"  # with the LayerNorm in front


@pytest.mark.parametrize("p", [0.0, 0.2])
@pytest.mark.parametrize(("family", "context"), [("bert", "save"), ("bert", "recompute"), (PRE_NORM, "save")])
def test_gradcheck_in_float64(p, family, context):
    """Numerical derivatives; the same masks at every call, as all are the same call of the counter."""
    net = network(family, p=p, width=4, heads=2, inner=5, layers=1).double()
    handle = converted(net, context=context)
    (layer,) = handle.layers.values()
    state = handle.rng_state()
    x = torch.randn(2, 2, 4, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[1, 1], [1, 0]])

    def run(x, *_):
        handle.set_rng_state(state)
        return layer(x, mask)

    assert torch.autograd.gradcheck(run, (x, *layer.parameters()), fast_mode=family == PRE_NORM)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("context", ["save", "recompute"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("skip", [False, True])
def test_keep_all_and_store_exactly_is_autograd(kernels, family, context, attention, skip):
    data = batch(**RAGGED)
    dense, net = (network(family, attn_implementation=attention) for _ in range(2))
    converted(net, context=context, kernels=kernels, skip_zero_rows=skip)
    (loss, want), (mine, got) = gradients(dense, data), gradients(net, data)
    assert abs(loss - mine) < 1e-6 and error(got, want) < 1e-6


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu", "silu"])
def test_activation_functions(kernels, activation):
    data = batch()
    want = gradients(network(hidden_act=activation), data)[1]
    for store, limit in (("exact", 1e-6), ("8bit", 0.02)):
        net = network(hidden_act=activation)
        converted(net, store=store, kernels=kernels)
        assert error(gradients(net, data)[1], want) < limit


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("family", ["bert", PRE_NORM])
@pytest.mark.parametrize(("store", "limit"), [("bf16", 3e-3), ("mixed", 0.02), ("8bit", 0.02)])
def test_what_rounding_costs(kernels, family, store, limit):
    data, shape = batch(rows=4, length=24), {"width": 128, "heads": 2, "inner": 256, "layers": 3}
    dense, net = network(family, **shape), network(family, **shape)
    converted(net, store=store, kernels=kernels)
    assert error(gradients(net, data)[1], gradients(dense, data)[1]) < limit


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("store", ["exact", "8bit"])
@pytest.mark.parametrize(
    ("rows", "length", "width", "heads", "inner"),
    [(1, 1, 8, 2, 12), (3, 1, 70, 7, 65), (2, 5, 63, 9, 130), (1, 130, 64, 1, 64), (4, 33, 130, 13, 1)],
)
def test_any_shape(kernels, store, rows, length, width, heads, inner):
    shape = {"width": width, "heads": heads, "inner": inner}
    data = batch(rows, length)
    dense, net = network(**shape), network(**shape)
    converted(net, store=store, kernels=kernels)
    assert error(gradients(net, data)[1], gradients(dense, data)[1]) < (1e-5 if store == "exact" else 0.05)


def test_more_tokens_than_one_piece_of_the_feed_forward(monkeypatch):
    data = batch(rows=9, length=20, lengths=[20, 3, 4, 20, 1, 20, 2, 9, 5])
    want = gradients(network(), data)[1]
    for skip in (False, True):
        whole, cut = network(), network()
        for net, chunk in ((whole, 2048), (cut, 32)):
            monkeypatch.setattr("keepfrac.sparse.act8bit.feed_forward.CHUNK", chunk)
            converted(net, keep_frac=0.4, skip_zero_rows=skip)
        monkeypatch.setattr("keepfrac.sparse.act8bit.feed_forward.CHUNK", 2048)
        one = gradients(whole, data)[1]
        monkeypatch.setattr("keepfrac.sparse.act8bit.feed_forward.CHUNK", 32)
        assert error(gradients(cut, data)[1], one) < 1e-6 and error(one, want) > 1e-3


def reference(layer, x, bias, seed, p):
    """The stock layer's formulas with the masks that the blocks draw, by autograd."""
    attention, out = layer.attention.self, layer.attention.output
    batch_size, length, width = x.shape
    heads = attention.num_attention_heads
    attention_seed, feed_forward_seed = (seed63(2 * seed + part, OUTPUT, 0) for part in range(2))

    def drop(value, seed):
        return value * keep_mask((batch_size * length, width), p, seed).view_as(value) / (1 - p)

    query, key, value = (
        one(x).view(batch_size, length, heads, -1).transpose(1, 2)
        for one in (attention.query, attention.key, attention.value)
    )
    probs = torch.softmax(query @ key.transpose(2, 3) * attention.scaling + bias[:, None, None], -1)
    masks = [keep_mask((heads, length, length), p, seed63(2 * seed, PROBABILITIES, b)) for b in range(batch_size)]
    context = (probs * torch.stack(masks) / (1 - p)) @ value
    h = out.dense(context.transpose(1, 2).reshape(x.shape))
    x = out.LayerNorm(drop(h, attention_seed) + x)
    h = layer.output.dense(F.gelu(layer.intermediate.dense(x)))
    return layer.output.LayerNorm(drop(h, feed_forward_seed) + x)


@pytest.mark.parametrize("kernels", KERNELS)
def test_with_dropout_it_is_autograd_with_the_same_masks(kernels):
    p, net = 0.3, network(p=0.3, layers=1)
    handle = converted(net, kernels=kernels)
    (layer,) = handle.layers.values()
    x, dy = torch.randn(3, 11, 96, requires_grad=True), torch.randn(3, 11, 96)
    bias = torch.zeros(3, 11)
    bias[1, 6:] = -torch.inf
    y = layer(x, (bias == 0).long())
    seed = seed63(0, 0, 0, 1)  # run 0, rank 0, layer 0, call 1
    want_y = reference(layer, x, bias, seed, p)
    inputs = [x, *layer.parameters()]
    want = torch.autograd.grad(want_y, inputs, dy)
    got = torch.autograd.grad(y, inputs, dy)
    torch.testing.assert_close(y, want_y, rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_dropout_drops_its_share_and_the_residual_stays():
    net = network(PRE_NORM, p=0.5, layers=1)
    (layer,) = converted(net).layers.values()
    with torch.no_grad():  # the sub-layers give 1 everywhere
        for linear in (layer.attention.output.dense, layer.output.dense):
            linear.weight.zero_()
            linear.bias.fill_(1.0)
    x = torch.randn(20, 30, 96)
    added = layer(x) - x
    share = [(added.round() == value).double().mean().item() for value in (0, 2, 4)]
    assert share == pytest.approx([0.25, 0.5, 0.25], abs=0.02)
    assert not torch.equal(layer(x) - x, added)


@pytest.mark.parametrize("family", ["bert", PRE_NORM])
@pytest.mark.parametrize("rows", ["wta", "grad", "random"])
@pytest.mark.parametrize("context", ["save", "recompute"])
def test_keep_frac_touches_weight_gradients_alone(family, rows, context):
    """The gradient to the input, to biases and to LayerNorms does not depend on the choice of rows."""
    data, net = batch(**RAGGED), network(family)
    want = gradients(network(family), data)[1]
    linear = {f"{path}.weight" for layer in anatomy(net).layers for path in layer.linears}
    handle = converted(net, keep_frac=0.2, rows=rows, context=context)
    got = gradients(net, data)[1]
    assert len(linear) == 12
    assert error(got, want, want.keys() - linear) < 1e-6 and error(got, want, linear) > 1e-3
    assert 0 < handle.kept()["achieved"] <= 0.25


@pytest.mark.parametrize("rows", ["wta", "random"])
def test_unbiased_rules_are_right_in_the_mean(rows):
    """The mean over many backward passes comes to the dense gradient, as fast as 1 / sqrt(passes)."""
    net = network(width=16, heads=2, inner=24, layers=1)
    x, dy = torch.randn(4, 10, 16), torch.randn(4, 10, 16)
    weights = [p for name, p in net.base_model.encoder.named_parameters() if p.dim() == 2]
    want = torch.cat([g.flatten() for g in torch.autograd.grad(stack(net, x), weights, dy)])
    converted(net, keep_frac=0.25, rows=rows)
    draws = [torch.cat([g.flatten() for g in torch.autograd.grad(stack(net, x), weights, dy)]) for _ in range(150)]
    estimates = torch.stack(draws)
    standard_error = (estimates.var(0).sum() / len(draws)).sqrt()
    assert (estimates.mean(0) - want).norm() < 3 * standard_error
    assert standard_error < 0.4 * want.norm()


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("rows", ["wta", "grad", "random"])
@pytest.mark.parametrize("keep_frac", [1.0, 0.3])
@pytest.mark.parametrize("family", ["bert", PRE_NORM])
def test_skipping_zero_rows_changes_nothing(kernels, rows, keep_frac, family):
    data, found = batch(**RAGGED), []
    for skip in (False, True):
        net = network(family, p=0.1)
        torch.manual_seed(3)  # the embeddings' own dropout
        converted(net, keep_frac, rows=rows, store="8bit", skip_zero_rows=skip, kernels=kernels)
        found.append(gradients(net, data)[1])
    assert error(*found) < 1e-6


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_sample_of_padding_alone(attention):
    data = batch(rows=3, length=6, lengths=[6, 0, 2])
    dense, net = (network(attn_implementation=attention) for _ in range(2))
    converted(net)
    assert error(gradients(net, data)[1], gradients(dense, data)[1]) < 1e-5


def test_an_empty_batch_is_refused():
    net = network()
    converted(net)
    with pytest.raises(UserError, match="empty batch"):
        stack(net, torch.zeros(0, 4, 96))


def test_frozen_weights_get_no_gradient_and_the_rest_does():
    data = batch()
    dense, net = network(), network()
    converted(net)
    for one in (dense, net):
        for name, parameter in one.named_parameters():
            parameter.requires_grad_("query" in name or "classifier" in name or "output.dense" in name)
    assert error(gradients(net, data)[1], gradients(dense, data)[1]) < 1e-6


def test_a_second_derivative_is_refused():
    net = network()
    converted(net)
    loss = net(**batch()).loss
    with pytest.raises(RuntimeError, match="second derivative"):
        torch.autograd.grad(loss, list(net.parameters()), create_graph=True, allow_unused=True)


def test_nothing_but_numbers_on_the_context():
    net = network()
    converted(net)
    y = stack(net, torch.randn(2, 3, 96, requires_grad=True))

    def tensors(value, depth=0):
        if isinstance(value, torch.Tensor):
            return [value]
        parts = vars(value).values() if hasattr(value, "__dict__") else value if isinstance(value, tuple | list) else ()
        return [tensor for part in parts for tensor in tensors(part, depth + 1)] if depth < 6 else []

    node = y.grad_fn
    while "Block" not in node.name():
        node = node.next_functions[0][0]
    assert set(vars(node)) == {"call", "compute"} and not tensors(node.call)


def test_nan_reaches_the_loss_and_the_gradients():
    net = network()
    converted(net, keep_frac=0.3, store="8bit", skip_zero_rows=True)
    with torch.no_grad():
        net.bert.encoder.layer[0].intermediate.dense.bias[3] = torch.nan
    loss, got = gradients(net, batch())
    assert loss != loss
    for name in ("bert.encoder.layer.0.attention.self.query.weight", "bert.encoder.layer.1.output.dense.weight"):
        assert not got[name].isfinite().all()
