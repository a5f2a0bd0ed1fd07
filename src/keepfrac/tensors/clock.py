"""How long things take, measured in turns: what slows the machine down for a while slows all of them down."""

import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch

Key = TypeVar("Key")


def interleaved_seconds(
    calls: Mapping[Key, Callable[[], object]], repeats: int, warm_up: int, device: torch.device | str
) -> dict[Key, list[float]]:
    """Returns the seconds of each call, of all rounds but the first ones.

    Args:
        calls: what is timed, in this order in each round.
        repeats: rounds that count, >= 1.
        warm_up: rounds before them, >= 0.
        device: that computes; on a GPU each call is timed until its work is done.
    """
    sync = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None
    seconds: dict[Key, list[float]] = {key: [] for key in calls}
    for turn in range(warm_up + repeats):
        for key, call in calls.items():
            sync()
            begin = time.perf_counter()
            call()
            sync()
            if turn >= warm_up:
                seconds[key].append(time.perf_counter() - begin)
    return seconds
