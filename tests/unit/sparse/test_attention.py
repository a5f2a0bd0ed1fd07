"""The attention sites against autograd with the kept parts saved, and as parts of models."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from keepfrac.sparse.context import Context, Draw
from keepfrac.sparse.convert import sparsify
from keepfrac.sparse.layers.attention import AttentionSites, attention, for_weights
from keepfrac.sparse.selection.selectors import Selector
from keepfrac.sparse.selection.site import Site
from tests.unit.sparse.nets import gradients, small_batch, small_net
from tests.unit.sparse.oracle import kept_part, substituted
from tests.unit.sparse.test_keeping import SELECTORS, names

BATCH, HEADS, LENGTH, WIDTH = 3, 2, 8, 6


def module_with(selector, attention_site, softmax_site):
    context = Context(0)
    context.hooked = True

    def site(number, heads=0):
        chosen = for_weights(selector) if heads else selector
        return Site(str(number), "attention", chosen, context, number, heads=heads)

    module = nn.Module()
    module.sparse_sites = AttentionSites(
        query=site(0) if attention_site else None,
        key=site(1) if attention_site else None,
        value=site(2) if attention_site else None,
        weights=site(3, HEADS) if attention_site and not softmax_site else None,
        softmax=site(4, HEADS) if softmax_site else None,
    )
    return module, context


def operands(device, dtype=torch.float64):
    # as the linears give them: (batch, length, heads, width), then transposed
    return [torch.randn(BATCH, LENGTH, HEADS, WIDTH, device=device, dtype=dtype).transpose(1, 2) for _ in range(3)]


def run(module, qkv, dropout=0.0):
    torch.manual_seed(5)
    leaves = [x.clone().requires_grad_() for x in qkv]
    # not leaves themselves, which a saved-tensors hook would see under another grad_fn
    out, weights = attention(module, *[x * 1 for x in leaves], None, dropout=dropout)
    out.backward(torch.cos(torch.arange(out.numel(), device=out.device).view(out.shape)).to(out.dtype))
    return [out.detach(), weights.detach(), *[x.grad for x in leaves]]


def part(x, selector, number):
    """The kept part of Q, K or V (batch, heads, length, width), selected with the heads side by side."""
    merged = x.transpose(1, 2).flatten(2)
    return kept_part(merged, selector, draw=Draw(0, number, 0)).unflatten(2, (HEADS, WIDTH)).transpose(1, 2)


def flat(x):
    return x.flatten(0, 1)


def close(actual, expected):
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("selector", SELECTORS, ids=names)
def test_products_equal_autograd_with_the_kept_parts_saved(selector, dropout, device):
    qkv = operands(device)
    module, _ = module_with(selector, attention_site=True, softmax_site=False)
    pairs = [(flat(x), flat(part(x, selector, n))) for n, x in enumerate(qkv)]
    if dropout:  # without it the weights stay whole: softmax saves them
        dropped = flat(run(nn.Module(), qkv, dropout)[1])
        pairs.append((dropped, kept_part(dropped, for_weights(selector), draw=Draw(0, 3, 0))))
    with substituted(*pairs):
        expected = run(nn.Module(), qkv, dropout)
    close(run(module, qkv, dropout), expected)
    assert bool(module.sparse_sites.weights.saved_elsewhere) == (dropout == 0)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("selector", SELECTORS, ids=names)
def test_fused_softmax_equals_autograd_with_the_kept_parts_saved(selector, both, dropout, device):
    qkv = operands(device)
    module, _ = module_with(selector, attention_site=both, softmax_site=True)
    weights = F.softmax(qkv[0] @ qkv[1].mT * WIDTH**-0.5, dim=-1)
    kept = kept_part(flat(weights), for_weights(selector), draw=Draw(0, 4, 0)).view(weights.shape)
    pairs = [(weights, kept)]
    if dropout:
        dropped = run(nn.Module(), qkv, dropout)[1]
        pairs.append((flat(dropped), flat(torch.where(dropped != 0, kept / (1 - dropout), 0.0))))
    if both:
        pairs += [(flat(x), flat(part(x, selector, n))) for n, x in enumerate(qkv)]
    with substituted(*pairs):
        expected = run(nn.Module(), qkv, dropout)
    close(run(module, qkv, dropout), expected)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("softmax_site", [False, True])
@pytest.mark.parametrize("attention_site", [False, True])
def test_the_forward_pass_is_that_of_transformers_bit_for_bit(attention_site, softmax_site, autocast, device):
    from transformers.models.bert.modeling_bert import eager_attention_forward

    qkv = operands(device, torch.float32)
    mask = torch.zeros(BATCH, 1, LENGTH, LENGTH, device=device).masked_fill_(
        torch.arange(LENGTH, device=device) > 5, torch.finfo(torch.float32).min
    )
    module, _ = module_with(Selector(0.3), attention_site, softmax_site)
    leaves = [x.clone().requires_grad_() for x in qkv]
    with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=autocast):
        torch.manual_seed(3)
        expected = eager_attention_forward(module, *leaves, mask, scaling=0.4, dropout=0.2)
        torch.manual_seed(3)
        actual = attention(module, *leaves, mask, scaling=0.4, dropout=0.2)
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


@pytest.mark.parametrize("sites", [("attention",), ("softmax",), ("attention", "softmax")])
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_models_train_and_score_as_before(family, sites):
    dense, net, batch = small_net(family), small_net(family), small_batch()
    sparsify(net, sites, Selector(0.5, unit="element", scope="sample"), seed=0)
    loss = net(**batch).loss
    loss.backward()
    reference = dense(**batch).loss
    reference.backward()
    assert torch.equal(loss, reference)
    ours, exact = gradients(net), gradients(dense)
    assert ours.keys() == exact.keys()
    flat_ours, flat_exact = (torch.cat([g[n].flatten() for n in exact]) for g in (ours, exact))
    assert F.cosine_similarity(flat_ours, flat_exact, dim=0) > 0.9
    with torch.no_grad():
        assert torch.equal(net.eval()(**batch).logits, dense.eval()(**batch).logits)


@pytest.mark.parametrize("sites", [("attention",), ("softmax",), ("linear", "attention", "softmax", "layer_norm")])
def test_keep_frac_1_equals_the_dense_model_bit_for_bit(sites):
    dense, net, batch = small_net(dropout=0.1), small_net(dropout=0.1), small_batch()
    sparsify(net, sites, Selector(1.0), seed=0)
    for model in (dense, net):
        torch.manual_seed(2)
        model(**batch).loss.backward()
    for name, gradient in gradients(dense).items():
        assert torch.equal(gradients(net)[name], gradient), name


def test_padded_keys_and_queries_are_never_kept():
    net, batch = small_net(), small_batch()
    handle = sparsify(net, ("attention", "softmax"), Selector(0.5, unit="element", scope="sample"), seed=0)
    net(**batch).loss.backward()
    counts = batch["attention_mask"].sum(1)
    weights = [site for site in handle.sites if site.kind == "softmax"]
    assert weights
    for site in weights:
        assert site.of == 4 * int((counts**2).sum())
        assert site.kept == 4 * int(((counts**2) / 2).ceil().sum())
    assert all(site.of == 32 * int(counts.sum()) for site in handle.sites if site.kind == "attention")
