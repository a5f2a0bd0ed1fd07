import pytest
import torch

from keepfrac.models.cut import cut, shape_of
from keepfrac.models.dense_reference import account_of, blueprint, dense_original, original_parameters
from keepfrac.prune.structure import LayerStructure, Structure
from tests.tiny import inputs, tiny

HEADS = (0, 1, 2, 3)
UNEVEN = Structure((LayerStructure((1, 3), (0, 5)), LayerStructure((), (), {}, True), LayerStructure(HEADS, (2, 3))))


def size(net):
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize("head", ["classification", "masked_lm"])
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_the_original_is_counted_again_and_again(family, head):
    net = tiny(family, head)
    small = cut(net, UNEVEN)
    smaller = cut(small, Structure((LayerStructure((0,), (1,)), LayerStructure((), (0, 1)))))
    assert original_parameters(net) == original_parameters(small) == original_parameters(smaller) == size(net)
    assert size(smaller) < size(small) < size(net)


def test_the_original_has_the_dense_shapes_and_disturbs_no_random_numbers():
    net = tiny()
    small = cut(net, UNEVEN)
    before = torch.get_rng_state()
    again = blueprint(small)("cpu")
    assert torch.equal(before, torch.get_rng_state())
    assert {n: p.shape for n, p in again.named_parameters()} == {n: p.shape for n, p in net.named_parameters()}
    assert shape_of(again) == shape_of(net) and again(**inputs()).logits.shape == net(**inputs()).logits.shape


def test_a_model_that_was_never_cut_is_its_own_original():
    net = tiny()
    assert dense_original(net) is net
    assert size(dense_original(cut(net, UNEVEN))) == size(net)


def test_a_cut_model_is_counted_from_itself():
    net = tiny()
    found = account_of(cut(net, UNEVEN))
    assert found.prunable == 3 * (4 * 32 * 32 + 2 * 32 * 48) and found.pooler == 32 * 32
    assert found.kept == 4 * 32 * 16 + 2 * 32 * 2 + 4 * 32 * 32 + 2 * 32 * 2
    assert found.prunable + found.others == size(net)
    assert found.kept + found.others_kept == size(cut(net, UNEVEN))
