import itertools

import pytest
import torch

from keepfrac.sparse.context import Draw, Padding
from keepfrac.sparse.selection.keeping import keep
from keepfrac.sparse.selection.packing import budgets, expected_bytes, smaller, unpack
from keepfrac.sparse.selection.selectors import RULES, SCOPES, UNITS, Selector

SELECTORS = [
    Selector(0.3, unit=unit, rule=rule, scope=scope)
    for unit, rule, scope in itertools.product(UNITS, RULES, SCOPES)
    if rule != "shifted_relu" or unit == "element"
]


def names(selector):
    return f"{selector.unit}-{selector.rule}-{selector.scope}"


def kept_mask(kept):
    """Which numbers are kept, from the layout alone: unpack ones."""
    ones = (torch.ones_like(kept.tensors[0]), kept.tensors[1])
    return unpack(kept.layout, ones).bool()


@pytest.fixture(params=["full", "padded"])
def batch(request, padding, device):
    x = torch.randn(3, 8, 12, device=device) + 0.01
    return x, (padding if request.param == "padded" else None)


@pytest.mark.parametrize("selector", SELECTORS, ids=names)
def test_what_is_kept_comes_back_and_the_rest_is_zero_and_its_bytes_are_known_before(selector, batch):
    x, padding = batch
    kept = keep(x, selector, padding, Draw(0, 0, 0))
    mask, back = kept_mask(kept), unpack(kept.layout, kept.tensors)
    real = torch.ones(3, 8, 1, device=x.device) if padding is None else padding.mask[..., None]
    assert torch.equal(back * real, x * mask * real)
    assert kept.tensors[0].dtype == x.dtype
    assert kept.tensors[1].dtype == (torch.uint8 if selector.unit == "element" else torch.int32)
    expected = expected_bytes((3, 8, 12), 4, selector, padding)
    assert kept.nbytes == expected or (selector.rule == "shifted_relu" and kept.nbytes < 1.5 * expected)


@pytest.mark.parametrize("selector", SELECTORS, ids=names)
def test_counts_are_exact_over_real_tokens(selector, batch):
    x, padding = batch
    kept = keep(x, selector, padding, Draw(0, 0, 0))
    counts = [8, 8, 8] if padding is None else [8, 5, 2]
    assert kept.of == sum(counts) * 12
    mask = kept_mask(kept)
    if padding is not None and selector.unit in ("token", "element"):
        assert not mask[~padding.mask].any()
    groups = [sum(counts)] if selector.scope == "batch" else counts
    per_sample = mask.flatten(1).sum(1)
    if selector.rule == "shifted_relu":
        assert 0.1 < kept.kept / kept.of < 0.46
    elif selector.unit == "token":
        expected = [12 * selector.budget(n) for n in groups]
        assert kept.kept == mask.sum() == sum(expected)
        assert selector.scope == "batch" or per_sample.tolist() == expected
    elif selector.unit == "element":
        expected = [selector.budget(12 * n) for n in groups]
        assert kept.kept == mask.sum() == sum(expected)
        assert selector.scope == "batch" or per_sample.tolist() == expected
    elif selector.unit == "column":
        assert kept.kept == 4 * sum(counts)  # ceil(0.3 * 12) columns
    else:
        assert kept.kept == 8 * sum(selector.budget(n * 12 / 8) for n in groups)


def test_padding_does_not_change_what_is_chosen(padding, device):
    x = torch.randn(3, 8, 12, device=device)
    garbage = torch.where(padding.mask[..., None], x, 1e4)
    for unit, scope in itertools.product(UNITS, SCOPES):
        selector = Selector(0.3, unit=unit, scope=scope)
        clean, dirty = (keep(v, selector, padding, Draw(0, 0, 0)) for v in (x, garbage))
        assert torch.equal(clean.tensors[1], dirty.tensors[1]), (unit, scope)


def test_top_rules_keep_the_largest(device):
    x = torch.randn(3, 8, 12, device=device)
    columns = keep(x, Selector(0.25, rule="top"), None, Draw(0, 0, 0))
    assert columns.tensors[1].tolist() == sorted(x.flatten(0, 1).norm(dim=0).topk(3).indices.tolist())
    rows = keep(x, Selector(0.25, unit="token", norm="l1", rule="top"), None, Draw(0, 0, 0))
    assert rows.tensors[1].tolist() == sorted(x.flatten(0, 1).abs().sum(1).topk(6).indices.tolist())
    series = keep(x, Selector(0.25, scope="sample", norm="inf", rule="top"), None, Draw(0, 0, 0))
    best = x.abs().amax(1).topk(3).indices + 12 * torch.arange(3, device=device)[:, None]
    assert series.tensors[1].tolist() == sorted(best.reshape(-1).tolist())
    elements = keep(x, Selector(0.25, unit="element", scope="sample", rule="top"), None, Draw(0, 0, 0))
    assert torch.equal(kept_mask(elements).flatten(1).sum(1).cpu(), torch.tensor([24] * 3))


def test_blocks_are_those_of_the_original_code(device):
    """The original code: reshape(batch, -1, length), max |x|, the top K over the batch, K = int(n * keep + 0.999)."""
    x = torch.randn(3, 8, 12, device=device)
    blocks = x.reshape(3, -1, 8).reshape(-1, 8)
    k = int(len(blocks) * 0.3 + 0.999)
    expected = blocks.abs().amax(1).argsort(descending=True)[:k]
    kept = keep(x, Selector(0.3, unit="block", norm="inf", rule="top"), None, Draw(0, 0, 0))
    assert kept.tensors[1].tolist() == sorted(expected.tolist())


def test_attention_weights_count_keys_of_real_tokens(device):
    mask = torch.arange(6, device=device) < torch.tensor([[6], [3]], device=device)
    padding = Padding.of(mask).of_weights(heads=2)
    weights = torch.rand(4, 6, 6, device=device) * mask.repeat_interleave(2, 0)[:, None]
    for unit in ("column", "element"):
        for rule in ("top", "random"):
            selector = Selector(0.5, unit=unit, rule=rule, scope="sample")
            kept = keep(weights, selector, padding, Draw(0, 0, 0))
            inside = kept_mask(kept) & padding.mask[:, None]
            assert kept.of == 2 * 36 + 2 * 9
            if unit == "column":
                assert inside.any(1).sum(1).tolist() == [3, 3, 2, 2]
            else:
                assert inside.flatten(1).sum(1).tolist() == [18, 18, 5, 5]


def test_relu_with_many_zeros_keeps_no_more_than_asked(device):
    x = torch.randn(4, 16, 64, device=device).sub(1).relu()
    kept = keep(x, Selector(0.3, unit="element", scope="sample", rule="top"), None, Draw(0, 0, 0))
    assert kept.kept == int((x > 0).sum()) <= 0.3 * x.numel()
    assert torch.equal(unpack(kept.layout, kept.tensors), x)


def test_shifted_relu_far_from_normal_stays_near_what_was_asked(device):
    x = torch.ones(2, 8, 12, device=device)
    x[0] = -1.1  # half lies above mean + 0.52 * deviation
    kept = keep(x, Selector(0.3, unit="element", rule="shifted_relu"), None, Draw(0, 0, 0))
    assert kept.kept == Selector(0.3).budget(x.numel())


def test_a_sample_without_tokens_keeps_nothing(device):
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0]], device=device)
    x = torch.randn(2, 4, 6, device=device)
    for selector in SELECTORS:
        if (selector.unit, selector.scope) == ("column", "batch"):
            continue  # a column is kept with all its rows
        kept = keep(x, selector, Padding.of(mask), Draw(0, 0, 0))
        assert not (unpack(kept.layout, kept.tensors)[1] != 0).any(), names(selector)


def test_smaller_counts_positions_and_bits():
    assert smaller((4, 8, 12), 4, Selector(0.5), None)
    assert not smaller((4, 8, 12), 4, Selector(0.95), None)  # 12 of 12 columns and their numbers
    bits = Selector(0.95, unit="element")
    assert smaller((4, 8, 1024), 4, bits, None)  # 0.95 * 4 + 1/8 < 4
    assert not smaller((4, 8, 1024), 2, bits, None)  # 0.95 * 2 + 1/8 > 2
    assert budgets((4, 8, 12), Selector(0.5, unit="token", scope="sample"), None) == [4] * 4
