import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from keepfrac.measurement.costs import saved_bytes
from keepfrac.sparse.context import Context, Draw
from keepfrac.sparse.layers.linear import SparseLinear
from keepfrac.sparse.selection.selectors import Selector
from keepfrac.sparse.selection.site import Site
from tests.unit.sparse.nets import changed
from tests.unit.sparse.nets import passes as run
from tests.unit.sparse.oracle import kept_part, substituted
from tests.unit.sparse.test_keeping import SELECTORS, names

SHAPE = (3, 8, 12)


def layer(selector, device="cpu", dtype=torch.float32, out=10, seed=0):
    """A dense layer and its sparse twin, the context of the twin."""
    torch.manual_seed(1)
    dense = nn.Linear(SHAPE[2], out, device=device, dtype=dtype)
    context = Context(seed)
    sparse = changed(copy.deepcopy(dense), SparseLinear, site=Site("it", "linear", selector, context, 0))
    return dense, sparse, context


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("selector", SELECTORS, ids=names)
def test_equals_autograd_with_the_kept_part_saved(selector, padded, padding, device):
    dense, sparse, context = layer(selector, device, torch.float64)
    x = torch.randn(SHAPE, device=device, dtype=torch.float64)
    mask = padding.mask if padded else None
    context.begin(mask)
    part = kept_part(x, selector, padding if padded else None, Draw(0, 0, 2))
    with substituted((x.flatten(0, 1), part.flatten(0, 1))):
        expected = run(dense, x)
    actual = run(sparse, x)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert torch.equal(actual[1], expected[1])  # dX is exact


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("selector", SELECTORS, ids=names)
def test_the_output_and_dx_are_the_dense_ones_bit_for_bit(selector, autocast, device):
    dense, sparse, _ = layer(selector, device)
    x = torch.randn(SHAPE, device=device)
    for one, other in zip(run(sparse, x, autocast)[:2], run(dense, x, autocast)[:2], strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("unit", ["column", "token", "block", "element"])
def test_keep_frac_1_is_the_dense_layer_bit_for_bit(unit, autocast, device):
    dense, sparse, _ = layer(Selector(1.0, unit=unit), device)
    x = torch.randn(SHAPE, device=device)
    for one, other in zip(run(sparse, x, autocast), run(dense, x, autocast), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("unit", ["column", "token", "block", "element"])
def test_gradcheck_where_everything_is_kept(unit):
    # One number short of all: the sparse path runs, and keeps all the numbers that are not zero.
    selector = Selector(0.999, unit=unit)
    _, sparse, _ = layer(selector, dtype=torch.float64)
    sparse.site.smaller = lambda shape, item: True
    x = torch.randn(SHAPE, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v, w, b: _with(sparse, v, w, b), (x, sparse.weight, sparse.bias))


def _with(sparse, x, weight, bias):
    sparse.weight, sparse.bias = nn.Parameter(weight), nn.Parameter(bias)
    from keepfrac.sparse.layers.linear import SparseLinearFunction

    kept = sparse.site.select(x * 1)
    return SparseLinearFunction.apply(x, weight, bias, kept.layout, *kept.tensors)


@pytest.mark.parametrize("unit", ["column", "token", "block", "element"])
def test_autocast_keeps_the_cast_and_returns_gradients_of_the_parameters_dtype(unit, device):
    dense, sparse, _ = layer(Selector(0.5, unit=unit, rule="top"), device)
    x = torch.randn(SHAPE, device=device)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t), t)[1], lambda t: t):
        y, dx, dw, db = run(sparse, x, autocast=True)
    assert y.dtype == torch.bfloat16
    assert dx.dtype == dw.dtype == db.dtype == torch.float32
    assert all(t.dtype in (torch.bfloat16, torch.int32, torch.uint8) for t in saved)
    reference = run(dense, x, autocast=True)
    assert torch.equal(db, reference[3])
    exact = run(dense, kept_part(x.bfloat16(), sparse.site.selector).float(), autocast=True)[2]
    torch.testing.assert_close(dw, exact, rtol=0.03, atol=0.03)


@pytest.mark.parametrize(
    ("rule", "scale"), [("random", "inverse"), ("mixed", "inverse"), ("sampled", "inverse"), ("random", "none")]
)
@pytest.mark.parametrize("unit", ["token", "column", "block", "element"])
def test_rules_converge_to_the_dense_gradient_or_unscaled_random_ones_to_their_share(rule, unit, scale):
    dense, sparse, context = layer(Selector(0.5, unit=unit, rule=rule, scale=scale))
    x = torch.randn(SHAPE)
    exact = run(dense, x)[2] * (0.5 if scale == "none" else 1.0)
    context.hooked = True
    mean, draws = torch.zeros_like(exact), 150
    for _ in range(draws):
        context.begin(None)
        mean += run(sparse, x)[2] / draws
    assert (mean - exact).norm() / exact.norm() < 0.2  # 1 / sqrt(150) of an error of about 1


def test_nothing_is_done_in_eval_or_without_grad_or_for_vectors():
    _, sparse, _ = layer(Selector(0.5))
    sparse.site.select = None  # calling it would fail
    x = torch.randn(SHAPE)
    with torch.no_grad():
        sparse(x)
    sparse(x[:, 0])
    sparse.eval()(x)
    assert isinstance(sparse, nn.Linear)


def test_a_frozen_weight_saves_nothing_of_x():
    _, sparse, _ = layer(Selector(0.5))
    sparse.weight.requires_grad_(False)
    x = torch.randn(SHAPE, requires_grad=True)
    assert saved_bytes(sparse, lambda: sparse(x * 1).sum()) == 0
    x.grad = None
    sparse(x).sum().backward()
    assert torch.allclose(x.grad, sparse.weight.sum(0).expand(SHAPE))
    assert sparse.weight.grad is None and sparse.bias.grad is not None


def test_a_layer_without_bias_and_an_input_without_grad():
    dense, sparse, _ = layer(Selector(0.5))
    sparse.bias = None
    y = sparse(torch.randn(SHAPE))
    y.sum().backward()
    assert sparse.weight.grad.shape == dense.weight.shape


class Shapes(TorchDispatchMode):
    """Records the shape of every tensor that any operation returns."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.seen.add(tuple(tensor.shape))
        return out


@pytest.mark.parametrize("selector", SELECTORS, ids=names)
def test_no_gradient_per_sample_is_ever_made(selector):
    _, sparse, _ = layer(selector)
    x = torch.randn(SHAPE, requires_grad=True)
    with Shapes() as shapes:
        sparse(x).sum().backward()
    batch, _, features = SHAPE
    assert (10, features) in shapes.seen
    assert not {(batch, 10, features), (batch, features, 10)} & shapes.seen


def test_query_key_value_share_one_selection():
    selector, context = Selector(0.3, rule="random"), Context(0)
    site = Site("attention", "linear", selector, context, 0, num_readers=3)
    trio = nn.ModuleList([changed(nn.Linear(12, 10), SparseLinear, site=site) for _ in range(3)])
    x = torch.randn(SHAPE) * 1.0

    def step():
        y = x * 2
        return sum(linear(y).sum() for linear in trio)

    one = saved_bytes(trio, lambda: trio[0](x * 2).sum())
    assert saved_bytes(trio, step) == one
    loss = step()
    loss.backward()
    chosen = [linear.weight.grad.abs().sum(0) > 0 for linear in trio]
    assert torch.equal(chosen[0], chosen[1])
    assert torch.equal(chosen[0], chosen[2])
    y = x * 2
    first = site.select(y)
    assert site.select(y) is first
    y.add_(1)
    assert site.select(y) is not first  # the same tensor with other numbers in it
    del y
    assert site._memo is None


@pytest.mark.parametrize("selector", SELECTORS, ids=names)
def test_gradients_accumulate(selector):
    _, sparse, context = layer(selector)
    context.hooked = True
    x = torch.randn(2, *SHAPE)

    def gradient(*steps):
        context.step = steps[0]
        for step in steps:
            context.begin(None)
            F.mse_loss(sparse(x[step]), torch.zeros(3, 8, 10)).backward()
        found = sparse.weight.grad.clone()
        sparse.zero_grad()
        return found

    together = gradient(0, 1)
    torch.testing.assert_close(together, gradient(0) + gradient(1))
