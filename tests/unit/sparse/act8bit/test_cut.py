"""Cut models and linears held as two factors, against their own stock layers."""

import copy

import pytest

from keepfrac.measurement.costs import saved_storages
from keepfrac.models.cut import counts_of, cut
from keepfrac.models.pruned import LowRankLinear
from keepfrac.prune.structure import LayerStructure, Structure
from keepfrac.tensors.surgery import find, replace
from tests.unit.sparse.act8bit.nets import KERNELS, RAGGED, batch, converted, error, gradients, network


def uneven(family):
    """Layers of different sizes; one without attention, one without feed-forward."""
    sizes = ((0, 2), (1, 2, 3, 50)), ((), tuple(range(33))), ((1, 2, 3), ())
    return cut(network(family, layers=3), Structure(tuple(LayerStructure(*one, {}) for one in sizes)))


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_a_cut_model(kernels, family):
    data, dense = batch(**RAGGED), uneven(family)
    net = copy.deepcopy(dense)
    handle = converted(net, kernels=kernels)
    (loss, want), (mine, got) = gradients(dense, data), gradients(net, data)
    assert abs(loss - mine) < 1e-6 and error(got, want) < 1e-6
    assert counts_of(net) == counts_of(dense)
    assert "12 linears" in handle.kept()["of"] and handle.kept()["achieved"] == 1


def with_factors(net):
    """The query of layer 0 and the second feed-forward linear of layer 1, each as two factors."""
    for path in ("bert.encoder.layer.0.attention.self.query", "bert.encoder.layer.1.output.dense"):
        linear = find(net, path)
        replace(net, path, LowRankLinear(linear.in_features, linear.out_features, 5, bias=True))
    return net


@pytest.mark.parametrize("keep_frac", [1.0, 0.3])
def test_linears_held_as_two_factors(keep_frac):
    """The gradient of their product goes on to both factors."""
    data, dense = batch(**RAGGED), with_factors(network(layers=3))
    net = copy.deepcopy(dense)
    handle = converted(net, keep_frac)
    got, want = gradients(net, data)[1], gradients(dense, data)[1]
    factors = {name for name in want if name.endswith(("p.weight", "q.weight"))}
    weights = {name for name in want if "encoder" in name and want[name].ndim == 2}
    assert len(factors) == 4 and all(got[name].isfinite().all() for name in factors)
    assert error(got, want, want.keys() - weights if keep_frac < 1 else want) < 1e-6
    with saved_storages(net) as storages:
        loss = net(**data).loss
    assert sum(row["bytes_kept"] for row in handle.report()) < sum(storages.values())
    loss.backward()
