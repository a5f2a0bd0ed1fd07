import pytest
import torch

from keepfrac.sparse.context import Padding

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)] if torch.cuda.is_available() else ["cpu"]


@pytest.fixture(autouse=True)
def one_thread():
    """Activations of a few hundred numbers: starting threads takes longer than the work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=DEVICES)
def device(request):
    return torch.device(request.param)


@pytest.fixture
def padding(device):
    """Three samples of 8 tokens, of which 8, 5 and 2 are real."""
    mask = torch.arange(8, device=device) < torch.tensor([[8], [5], [2]], device=device)
    return Padding.of(mask.long())
