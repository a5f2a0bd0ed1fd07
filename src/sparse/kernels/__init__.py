"""The elementwise kernels of `late`: C++ for the CPU, and the same functions in plain PyTorch for everything else.

Triton kernels for a GPU are not written yet: there the plain functions run, which is correct and not fast.
"""

import functools
import logging
from typing import Any

import torch
from torch import Tensor

from src.errors import UserError
from src.sparse.kernels import plain
from src.sparse.kernels.compiled import Compiled, load

log = logging.getLogger(__name__)

CHOICES = ("auto", "cpp", "native", "torch")


@functools.cache
def _compiled_or_none(choice: str) -> Compiled | None:
    """The compiled kernels for "cpp" and "native" (an error where they cannot be built); for "auto" perhaps None."""
    try:
        return load(native=choice == "native")
    except UserError as error:
        if choice != "auto":
            raise
        log.warning(
            "no C++ kernels, so `late` runs in plain PyTorch, which is slower: %s", str(error).splitlines()[0]
        )
        return None


def prepare(choice: str) -> str:
    """Builds what `choice` asks for, so that the first step need not; returns what will run: "cpp" or "torch".

    Args:
        choice: "cpp" (built for a level of instructions that this processor has), "native" (for exactly this
            processor), "torch", or "auto": cpp, and torch where it cannot be built.

    Raises:
        UserError: another word, or "cpp" or "native" cannot be built here.
    """
    if choice not in CHOICES:
        raise UserError(f"kernels={choice!r}: choose among {', '.join(CHOICES)}")
    return "torch" if choice == "torch" or _compiled_or_none(choice) is None else "cpp"


def kernels_for(choice: str, x: Tensor, compute: torch.dtype) -> Any:
    """Returns the kernels for x's device and dtype and matmuls in `compute`: a `Compiled`, or the module `plain`."""
    fits = x.device.type == "cpu" and {x.dtype, compute} <= {torch.float32, torch.bfloat16}
    return (_compiled_or_none(choice) if fits and choice != "torch" else None) or plain
