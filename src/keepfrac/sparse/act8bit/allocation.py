"""Storage formats of each layer within a budget of bytes, chosen by measured errors of the gradient.

Every layer has three kinds of stored activations (see `StorageFormat`), each with a few options. On one batch, each
option of each layer is tried alone while all else is stored exactly and every row is used: its error is the squared
distance of all parameters' gradients to the exact ones, its gain the bytes that are freed. Rounding errors of different
slots are independent, so they add. From exact storage on, the option with the least error per freed byte is taken
again and again until the budget is met: the greedy path along the convex hull of a knapsack with one choice per slot.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from keepfrac.errors import UserError
from keepfrac.sparse.act8bit.calls import RowStats
from keepfrac.sparse.act8bit.saver import Converted
from keepfrac.sparse.act8bit.settings import BITS, CONTEXTS, STORES, StorageFormat
from keepfrac.sparse.protocol import Handle

log = logging.getLogger(__name__)

EXACT = STORES["exact"]
_ATTENTION = [{"attention": bits, "context": context} for bits in BITS for context in CONTEXTS]
# of each slot in a layer, what it may be instead of exact
OPTIONS = {
    "normalized": [{"normalized": bits} for bits in BITS[:-1]],
    "attention": [one for one in _ATTENTION if replace(EXACT, **one) != EXACT],
    "pre_activation": [{"pre_activation": bits} for bits in BITS[:-1]],
}


@dataclass(frozen=True)
class StorageOption:
    """One way to store one slot.

    Args:
        change: fields of `StorageFormat`.
        error: squared relative error of all gradients with it.
        freed: bytes that it stores less than exactly.
    """

    change: dict[str, str]
    error: float
    freed: int


EXACT_OPTION = StorageOption({}, 0.0, 0)
Slot = tuple[int, str]


def cheapest(options: dict[Slot, list[StorageOption]], to_free: int) -> dict[Slot, StorageOption] | None:
    """Returns an option per slot that together free at least `to_free` bytes at little error; None: impossible.

    Args:
        options: of each slot, without EXACT_OPTION.
        to_free: bytes.
    """
    taken = dict.fromkeys(options, EXACT_OPTION)
    while sum(one.freed for one in taken.values()) < to_free:
        moves = [
            (max(0.0, one.error - taken[slot].error) / (one.freed - taken[slot].freed), -one.freed, slot, one)
            for slot, found in options.items()
            for one in found
            if one.freed > taken[slot].freed
        ]
        if not moves:
            return None
        *_, slot, one = min(moves, key=lambda move: move[:3])
        taken[slot] = one
    return taken


class _Trial:
    """Gradients and bytes of one batch under different ways to store."""

    def __init__(self, net: nn.Module, handle: Converted, step: Callable[[], Tensor]) -> None:
        self.handle, self.step = handle, step
        self.parameters = [p for p in net.parameters() if p.requires_grad]
        self.state = handle.rng_state()

    def forward(self, formats: list[StorageFormat]) -> tuple[Tensor, int]:
        """Returns the loss, with the same dropout each time, and the bytes that the layers store."""
        self.handle.set_storage(formats)
        self.handle.set_rng_state(self.state)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            loss = self.step()
        return loss, sum(row["bytes_kept"] for row in self.handle.report())

    def gradients(self, loss: Tensor) -> list[Tensor]:
        found = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        return [one for one in found if one is not None]


@contextmanager
def _whole_gradients(handle: Converted) -> Iterator[None]:
    """Within it every row is used, and nothing is counted."""
    kept = [(layer.late.settings, layer.late.attention, layer.late.feed_forward) for layer in handle.layers.values()]
    state = handle.rng_state()
    for layer in handle.layers.values():
        layer.late.settings = replace(layer.late.settings, keep_frac=1.0)
        layer.late.attention, layer.late.feed_forward = RowStats(), RowStats()
    try:
        yield
    finally:
        for layer, was in zip(handle.layers.values(), kept, strict=True):
            layer.late.settings, layer.late.attention, layer.late.feed_forward = was
        handle.set_rng_state(state)


def _measured(trial: _Trial, count: int) -> tuple[dict[Slot, list[StorageOption]], int]:
    """Returns the options of each slot with their errors, and the bytes of exact storage."""
    exact = [EXACT] * count
    loss, whole = trial.forward(exact)
    want = trial.gradients(loss)
    size = sum(one.double().square().sum() for one in want)
    options: dict[Slot, list[StorageOption]] = {}
    for layer in range(count):
        for name, changes in OPTIONS.items():
            options[layer, name] = []
            for change in changes:
                loss, kept = trial.forward([*exact[:layer], replace(EXACT, **change), *exact[layer + 1 :]])
                if kept >= whole:
                    continue
                pairs = zip(trial.gradients(loss), want, strict=True)
                error = sum((got - one).double().square().sum() for got, one in pairs)
                options[layer, name].append(StorageOption(change, float(error / size), whole - kept))
    return options, whole


def allocate_formats(net: nn.Module, handle: Handle, step: Callable[[], Tensor], budget: float) -> None:
    """Makes the layers store within a budget.

    Args:
        net: the converted network.
        handle: its handle.
        step: a forward pass of one batch to its loss.
        budget: share of the bytes that PyTorch stores for these layers, in (0, 1].

    Raises:
        UserError: the layers cannot be stored in so little, or the network has no blocks with formats to choose.
    """
    if not isinstance(handle, Converted):
        raise UserError(f"method.budget={budget}: late has no blocks for this network, whose formats it could choose")
    count = len(handle.layers)
    with _whole_gradients(handle):
        trial = _Trial(net, handle, step)
        options, whole = _measured(trial, count)
        dense = sum(row["bytes_dense"] for row in handle.report())
        chosen = cheapest(options, whole - int(budget * dense))
        if chosen is None:
            least = whole - sum(max((one.freed for one in found), default=0) for found in options.values())
            raise UserError(
                f"method.budget={budget}: these layers store {least / dense:.3f} of what dense ones do at the least"
            )
        formats = [EXACT] * count
        for (layer, _), option in chosen.items():
            formats[layer] = replace(formats[layer], **option.change)
        _, kept = trial.forward(formats)
    handle.set_storage(formats)
    error = sum(option.error for option in chosen.values()) ** 0.5
    log.info("method late: %.3f of dense's bytes, expected error of the gradient %.2g", kept / dense, error)
