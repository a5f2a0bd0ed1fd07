"""How high memory rises during a step: what the allocator hands out beyond what was there at its start."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

_EVENT = "[memory]"  # the profiler's name of an allocation (bytes above 0) or of a release (below)


def peak_bytes(step: Callable[[], object], device: torch.device | None = None) -> int:
    """Returns the largest sum of bytes that live at once during `step()`, less what lives when it begins.

    Every tensor's storage counts, temporary ones of an operator too; so do gradients that the step creates. What
    a library takes without torch's allocator (a matmul's own workspace) does not.

    Args:
        step: forward and backward.
        device: a GPU, whose allocator counts by itself; None or a CPU: the CPU's allocator, by the profiler.
    """
    if device is not None and device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    with _silent():
        profiler.start()
        try:
            step()
        finally:
            profiler.stop()
    recorder: Any = profiler.profiler
    found = recorder.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in found if event.name() == _EVENT)
    now = highest = 0
    for _, change in changes:
        now += change
        highest = max(highest, now)
    return highest


@contextmanager
def _silent() -> Iterator[None]:
    """Silences the standard error within it: the profiler's library writes there."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
