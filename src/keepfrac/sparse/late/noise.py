"""The seeds of dropout masks and of sampled rows: counters, so that nothing but two numbers has to be remembered.

A seed is a hash of (the run's seed, the rank, the layer, how often the layer has been called, the site). Masks differ
between steps, layers and ranks; the backward pass regenerates them from the seed; a resumed run goes on with the same
ones after `calls` is restored. Torch's own random state is not touched.
"""

from collections import OrderedDict

import torch
from torch import Tensor

_MASK = (1 << 64) - 1


def mixed(*parts: int) -> int:
    """Hashes integers to 63 bits (splitmix64 of Steele et al. 2014, chained)."""
    state = 0
    for part in parts:
        state = (state ^ (part & _MASK)) + 0x9E3779B97F4A7C15 & _MASK
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ state >> 27) * 0x94D049BB133111EB & _MASK
        state ^= state >> 31
    return state >> 1


def _rank() -> int:
    distributed = torch.distributed
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0


def _is_recomputation() -> bool:
    """Whether a backward pass is running: a forward in it is activation checkpointing, which repeats an earlier one."""
    return torch._C._current_graph_task_id() != -1


class Noise:
    """The counter of one layer.

    Args:
        seed: the run's.
        layer: the layer's number.
    """

    REMEMBERED = 256  # calls whose repetition is recognised by their input; beyond, the latest is repeated

    def __init__(self, seed: int, layer: int) -> None:
        self.seed, self.layer, self.calls = seed, layer, 0
        self._call_of: OrderedDict[int, int] = OrderedDict()

    def seed_for(self, hidden: Tensor) -> int:
        """Returns the seed of this call of the layer on `hidden`; a repetition under checkpointing gets the first's."""
        address = hidden.data_ptr()
        if _is_recomputation():
            call = self._call_of.get(address, self.calls)
        else:
            self.calls += 1
            call = self._call_of[address] = self.calls
            self._call_of.move_to_end(address)
            if len(self._call_of) > self.REMEMBERED:
                self._call_of.popitem(last=False)
        return mixed(self.seed, _rank(), self.layer, call)
