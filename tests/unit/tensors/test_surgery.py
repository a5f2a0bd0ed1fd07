import pytest
from torch import nn

from keepfrac.errors import UserError
from keepfrac.tensors.surgery import find, replace


@pytest.fixture
def net():
    return nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.ReLU(), nn.Linear(3, 4)))


def test_find_and_replace_by_path(net):
    assert find(net, "1.1").out_features == 4
    replace(net, "1.1", nn.Identity())
    assert isinstance(net[1][1], nn.Identity)
    replace(net, "0", nn.Identity())
    assert isinstance(net[0], nn.Identity)


def test_what_is_not_there_is_an_error(net):
    for path in ("2", "1.5", "relu"):
        with pytest.raises(UserError, match=path):
            replace(net, path, nn.Identity())
