"""Two processes with half a batch each against one with the whole, and compiled models."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from keepfrac.sparse.convert import sparsify
from keepfrac.sparse.selection.selectors import Selector
from tests.unit.sparse.nets import gradients, small_batch, small_net

# Random columns are drawn from the seed alone, elements are chosen within a sample: neither knows of other samples.
SELECTORS = {
    "nosp": Selector(1.0),
    "rand": Selector(0.3, rule="random"),
    "bkrz": Selector(0.3, unit="element", scope="sample"),
}


def sparse_gradients(selector, batch, wrap=lambda net: net):
    net = small_net()
    sparsify(net, ("linear",), selector, seed=1)
    model = wrap(net)
    for _ in range(2):
        model(**batch).loss.backward()
    return gradients(net)


def worker(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    share = {name: part.chunk(2)[rank] for name, part in small_batch().items()}
    found = {name: sparse_gradients(s, share, DistributedDataParallel) for name, s in SELECTORS.items()}
    if rank == 0:
        torch.save(found, f"{folder}/gradients.pt")
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    mp.spawn(worker, args=(str(tmp_path),), nprocs=2)
    found = torch.load(tmp_path / "gradients.pt")
    for name, selector in SELECTORS.items():
        expected = sparse_gradients(selector, small_batch())
        for parameter, gradient in expected.items():
            torch.testing.assert_close(
                found[name][parameter], gradient, rtol=1e-4, atol=1e-6, msg=f"{name}: {parameter}"
            )


# The compiler looks at attributes of tensors on its way, and warns of its own doing.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("sites", [("linear",), ("linear", "attention", "softmax", "layer_norm")])
def test_a_compiled_model_has_the_same_gradients(sites):
    expected, batch = {}, small_batch()
    for compiled in (False, True):
        net = small_net(act="relu")
        sparsify(net, sites, Selector(0.3, unit="token", rule="random"), seed=1)
        model = torch.compile(net, backend="eager") if compiled else net
        model(**batch).loss.backward()
        expected[compiled] = gradients(net)
    for name, gradient in expected[False].items():
        torch.testing.assert_close(expected[True][name], gradient, msg=name)
