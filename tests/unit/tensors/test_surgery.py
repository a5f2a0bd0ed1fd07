import pytest
from torch import nn

from keepfrac.errors import UserError
from keepfrac.tensors.surgery import find, matching, replace, replace_all


@pytest.fixture
def net():
    return nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.ReLU(), nn.Linear(3, 4)))


def test_find_and_replace_by_path(net):
    assert find(net, "1.1").out_features == 4
    replace(net, "1.1", nn.Identity())
    assert isinstance(net[1][1], nn.Identity)
    replace(net, "0", nn.Identity())
    assert isinstance(net[0], nn.Identity)


def test_replace_all_makes_each_from_the_old(net):
    paths = matching(net, lambda path, module: isinstance(module, nn.Linear))
    assert paths == ["0", "1.1"]
    assert replace_all(net, paths, lambda old: nn.Identity(old.out_features)) == paths
    assert not [m for m in net.modules() if isinstance(m, nn.Linear)]


def test_what_matches_nothing_is_an_error(net):
    with pytest.raises(UserError, match="nothing would be changed"):
        matching(net, lambda path, module: isinstance(module, nn.GRU))
    with pytest.raises(UserError, match="nothing would be changed"):
        replace_all(net, [], lambda old: old)
    for path in ("2", "1.5", "relu"):
        with pytest.raises(UserError, match=path):
            replace(net, path, nn.Identity())
