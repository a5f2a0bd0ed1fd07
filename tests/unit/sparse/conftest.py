import pytest
import torch

from src.sparse.context import Padding


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)] if torch.cuda.is_available() else ["cpu"]


@pytest.fixture(params=DEVICES)
def device(request):
    return torch.device(request.param)


@pytest.fixture
def padding(device):
    """Three samples of 8 tokens, of which 8, 5 and 2 are real."""
    mask = torch.arange(8, device=device) < torch.tensor([[8], [5], [2]], device=device)
    return Padding.of(mask.long())
