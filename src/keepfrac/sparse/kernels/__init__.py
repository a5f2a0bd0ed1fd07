"""The elementwise kernels of `late`: C++ for a CPU, Triton for a GPU, and the same in plain PyTorch for what is left.

The Triton kernels were run in Triton's interpreter and compiled for GPUs, but never timed on one.
"""

import functools
import logging
import subprocess
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from keepfrac.errors import UserError
from keepfrac.sparse.kernels import plain
from keepfrac.sparse.kernels.compiled import Compiled, load

log = logging.getLogger(__name__)

CHOICES = ("auto", "cpp", "native", "triton", "torch")


def _unless_auto(choice: str, language: str, get: Callable[[], Any]) -> Any:
    """Returns the kernels that `get` gives; None, with a warning, where "auto" cannot have them."""
    try:
        return get()
    except UserError as error:
        if choice != "auto":
            raise
        reason = str(error).splitlines()[0]
        log.warning("no %s kernels, so `late` runs in plain PyTorch, which is slower: %s", language, reason)
        return None


@functools.cache
def _compiled_or_none(choice: str) -> Compiled | None:
    return _unless_auto(choice, "C++", lambda: load(native=choice == "native"))


def _launched(device: str) -> Any:
    """The module of Triton's kernels, once one has run on the device; None for a CPU tensor where there is a GPU.

    Raises:
        UserError: it does not.
    """
    try:
        from keepfrac.sparse.kernels import triton_kernels  # only now: Triton is no dependency
    except ImportError as error:
        raise UserError(f"kernels=triton: Triton cannot be imported here: {error}") from error
    if device == "cpu" and not triton_kernels.interpreted():
        if torch.cuda.is_available():
            return None  # what comes before the trainer moves the model
        raise UserError(
            "kernels=triton needs a GPU, and there is none here: choose among auto, cpp, native, torch"
            " (for tests, TRITON_INTERPRET=1 in the environment runs it on a CPU, very slowly)"
        )
    try:
        triton_kernels.pack(torch.zeros(1, 64, device=device), torch.int8)
    # a GPU that is too old, no C compiler for the launcher, a driver that is too old
    except (RuntimeError, OSError, ValueError, subprocess.SubprocessError, triton_kernels.TritonError) as error:
        raise UserError(f"kernels=triton: Triton does not run on this device: {error}") from error
    return triton_kernels


@functools.cache
def _launched_or_none(choice: str, device: str) -> Any:
    return _unless_auto(choice, "Triton", lambda: _launched(device))


def prepare(choice: str, device: torch.device) -> str:
    """Builds what `choice` asks for, so that the first step need not; returns what will run: cpp, triton or torch.

    Args:
        choice: "cpp" (built for a level of instructions that this processor has), "native" (for exactly this
            processor), "triton", "torch", or "auto": cpp on a CPU and triton on an NVIDIA GPU, torch where that cannot
            be had. On a GPU, cpp and native come to torch.
        device: where the model is now; a trainer may move it to a GPU later.

    Raises:
        UserError: another word, or what is asked for cannot be had here.
    """
    if choice not in CHOICES:
        raise UserError(f"kernels={choice!r}: choose among {', '.join(CHOICES)}")
    found = kernels_for(choice, torch.empty(0, device=device), torch.float32)
    return "torch" if found is plain else "cpp" if isinstance(found, Compiled) else "triton"


def kernels_for(choice: str, x: Tensor, compute: torch.dtype) -> Any:
    """Returns the kernels for x's device and dtype and matmuls in `compute`, under the names that plain.py has.

    That is a `Compiled`, the module `triton_kernels`, or the module `plain`; always the last for other dtypes.
    """
    device, dtypes = x.device.type, {x.dtype, compute}
    if choice == "triton" or (choice == "auto" and device == "cuda"):
        fits = dtypes <= {torch.float32, torch.bfloat16, torch.float16}
        return (_launched_or_none(choice, device) if fits else None) or plain
    fits = device == "cpu" and dtypes <= {torch.float32, torch.bfloat16}
    return (_compiled_or_none(choice) if fits and choice != "torch" else None) or plain
