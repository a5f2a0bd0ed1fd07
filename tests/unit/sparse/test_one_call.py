"""What a library's user calls without reading on: one argument, and one handle."""

import pytest
import torch

from keepfrac.errors import UserError
from keepfrac.sparse import act8bit
from keepfrac.sparse.convert import sparsify
from keepfrac.sparse.recompute import recompute_activations
from keepfrac.sparse.selection.selectors import Selector
from tests.tiny import inputs, tiny

CALLS = {
    "convert": act8bit.convert,
    "convert, a share": lambda net: act8bit.convert(net, 0.3),
    "sparsify": sparsify,
    "sparsify, a share": lambda net: sparsify(net, selector=0.3),
    "recompute_activations": recompute_activations,
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_one_call_gives_one_handle_and_takes_itself_back(call):
    net = tiny()
    classes = [type(module) for module in net.modules()]
    handle = call(net)
    net.train()(**inputs(), labels=torch.tensor([0, 1, 2])).loss.backward()
    assert handle.kept()["asked"] == (1.0 if call is recompute_activations else 0.3)
    handle.load_state(handle.state())
    handle.restore()
    assert [type(module) for module in net.modules()] == classes


def test_the_selector_s_rule_is_the_recommended_one():
    assert (Selector(0.3).rule, Selector(0.3).norm, Selector(0.3).unit) == ("sampled", "l2", "column")


@pytest.mark.parametrize("share", [0, 1.5, "a third"])
@pytest.mark.parametrize("call", [act8bit.convert, lambda net, share: sparsify(net, selector=share)])
def test_a_share_that_is_none_is_said(call, share):
    with pytest.raises(UserError, match=rf"keep_frac='?{share}'?.*must be a"):
        call(tiny(), share)
