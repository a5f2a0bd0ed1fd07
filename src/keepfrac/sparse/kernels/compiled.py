"""late.cpp: compiled on first use, kept in a cache, and called under the names that plain.py has.

The source depends on no header of torch, so that it builds in a few seconds and one file serves every torch; tensors
are handed over as pointers. The cache is `$XDG_CACHE_HOME/keepfrac/kernels/<hash>`, the hash being of the source, the
flags, the processor's level and torch's version: another machine on the same home folder builds its own.
"""

import ctypes
import functools
import hashlib
import logging
import platform
from pathlib import Path

import torch
from torch import Tensor

from keepfrac.errors import UserError
from keepfrac.sparse.kernels import plain
from keepfrac.storage.cache import cache_folder
from keepfrac.storage.files import replacing

log = logging.getLogger(__name__)

SOURCES = tuple(Path(__file__).with_name(name) for name in ("late.cpp", "rows.h"))
# the numbers of `enum Kind` in rows.h
KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2, torch.uint8: 3}
# no -ffast-math: NaN and infinity must come out as such
FLAGS = ("-std=c++17", "-O3", "-fopenmp", "-fno-math-errno", "-fno-trapping-math")
LEVELS = {"AVX512": ("-march=x86-64-v4", "-mprefer-vector-width=512"), "AVX2": ("-march=x86-64-v3",)}


def flags(native: bool) -> tuple[str, ...]:
    """Returns the compiler's flags: a psABI level that this processor has (portable), or -march=native."""
    if native:
        return (*FLAGS, "-march=native")
    is_x86 = platform.machine() in ("x86_64", "AMD64")
    return (*FLAGS, *(LEVELS.get(torch.backends.cpu.get_cpu_capability(), ()) if is_x86 else ()))


def cached_path(native: bool) -> Path:
    """Returns where the compiled library is, or would be."""
    digest = hashlib.sha256("\0".join([*flags(native), torch.__version__, platform.machine()]).encode())
    if native:
        digest.update(_processor().encode())
    for source in SOURCES:
        digest.update(source.read_bytes())
    return cache_folder("kernels") / digest.hexdigest()[:16] / "late.so"


def _processor() -> str:
    """What distinguishes one processor from another where the flags are `native`."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))


def build(native: bool = False) -> Path:
    """Compiles late.cpp unless the cache has it, and returns the library's path. Safe in parallel processes.

    Raises:
        UserError: there is no compiler, no ninja, or it refuses the source.
    """
    target = cached_path(native)
    if target.exists():
        return target
    from torch.utils import cpp_extension  # only now: it looks for compilers while it is imported

    log.info("building the CPU kernels of `late` (once, some seconds) into %s", target.parent)
    try:
        with replacing(target) as library:
            cpp_extension.load(
                "late",
                [str(SOURCES[0])],
                extra_cflags=list(flags(native)),
                extra_ldflags=["-fopenmp"],
                build_directory=str(library.parent),
                is_python_module=False,
            )
    except (OSError, RuntimeError, ImportError) as error:
        raise UserError(f"the C++ kernels cannot be built here (is there a compiler, and ninja?): {error}") from error
    return target


def _argument(value: Tensor | int | float | None):
    """A tensor as the pointer to its numbers, None as a null pointer, an int as int64, a float as double."""
    if value is None:
        return None
    if isinstance(value, Tensor):
        assert value.is_contiguous(), "the kernels walk over contiguous rows"
        return ctypes.c_void_p(value.data_ptr())
    return ctypes.c_double(value) if isinstance(value, float) else ctypes.c_int64(value)


def _wide(x: Tensor | None) -> Tensor | None:
    """Per-feature and per-row factors are float32 in the kernels."""
    return None if x is None else x.detach().to(torch.float32).contiguous()


class Compiled:
    """The functions of plain.py that are worth fusing, by the compiled library; see there for what they do."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))

    def _call(self, name: str, *values: Tensor | int | float | None) -> None:
        getattr(self._library, name)(*map(_argument, values))

    def pack(self, x: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor]:
        if kind == x.dtype:
            return x, x.new_empty(0)
        data, scales = plain.empty(x.shape[0], x.shape[1], kind, x.device)
        self._call("pack", x, KINDS[x.dtype], *x.shape, data, scales, KINDS[kind])
        return data, scales

    def unpack(
        self,
        data: Tensor,
        scales: Tensor,
        index: Tensor | None,
        gamma: Tensor | None,
        beta: Tensor | None,
        weight: Tensor | None,
        dtype: torch.dtype,
    ) -> Tensor:
        count, width = data.shape[0] if index is None else index.numel(), data.shape[1]
        out = torch.empty(count, width, dtype=dtype)
        stored = (data, scales, KINDS[data.dtype], width, index, count)
        self._call("unpack", *stored, _wide(gamma), _wide(beta), _wide(weight), out, KINDS[dtype])
        return out

    def add_norm(
        self,
        h: Tensor,
        residual: Tensor,
        gamma: Tensor,
        beta: Tensor,
        eps: float,
        p: float,
        seed: int,
        kind: torch.dtype,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        y, rstd = torch.empty_like(residual), torch.empty(h.shape[0])
        data, scales = plain.empty(h.shape[0], h.shape[1], kind, h.device)
        inputs = (h, KINDS[h.dtype], residual, KINDS[residual.dtype], *h.shape, _wide(gamma), _wide(beta))
        self._call("add_norm", *inputs, float(eps), float(p), seed, y, data, scales, KINDS[kind], rstd)
        return y, data, scales, rstd

    def add_norm_grad(
        self,
        dy: Tensor,
        data: Tensor,
        scales: Tensor,
        rstd: Tensor,
        gamma: Tensor,
        p: float,
        seed: int,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        rows, width = dy.shape
        d_residual, d_h, norms = torch.empty_like(dy), torch.empty_like(dy, dtype=dtype), torch.empty(rows)
        threads = torch.get_num_threads()
        sums = torch.zeros(threads, 2, width)
        inputs = (dy, KINDS[dy.dtype], data, scales, KINDS[data.dtype], rows, width, rstd, _wide(gamma))
        outputs = (d_residual, d_h, KINDS[dtype], norms, sums, threads)
        self._call("add_norm_grad", *inputs, float(p), seed, *outputs)
        d_gamma, d_beta = sums.sum(0).unbind(0)
        return d_residual, d_h, d_gamma, d_beta, norms

    def gelu_(self, h: Tensor, data: Tensor, scales: Tensor) -> Tensor:
        self._call("gelu", h, KINDS[h.dtype], *h.shape, data, scales, KINDS[data.dtype])
        return h

    def gelu_grad_(self, grad: Tensor, data: Tensor, scales: Tensor, index: Tensor | None) -> Tensor:
        stored = (data, scales, KINDS[data.dtype], data.shape[1], index, grad.shape[0])
        self._call("gelu_grad", grad, KINDS[grad.dtype], *stored)
        return grad

    def gelu_rows(
        self, data: Tensor, scales: Tensor, index: Tensor | None, weight: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        count = data.shape[0] if index is None else index.numel()
        out = torch.empty(count, data.shape[1], dtype=dtype)
        stored = (data, scales, KINDS[data.dtype], data.shape[1], index, count)
        self._call("gelu_rows", *stored, _wide(weight), out, KINDS[dtype])
        return out

    def softmax_(self, scores: Tensor, scale: float, bias: Tensor | None, p: float, seed: int) -> Tensor:
        rows, keys = scores.numel() // scores.shape[-1], scores.shape[-1]
        self._call("softmax", scores, KINDS[scores.dtype], rows, keys, float(scale), _wide(bias), float(p), seed)
        return scores

    def softmax_grad_(
        self, scores: Tensor, grad: Tensor, scale: float, bias: Tensor | None, p: float, seed: int
    ) -> tuple[Tensor, Tensor]:
        rows, keys = scores.numel() // scores.shape[-1], scores.shape[-1]
        noise = (float(scale), _wide(bias), float(p), seed)
        self._call("softmax_grad", scores, grad, KINDS[scores.dtype], rows, keys, *noise)
        return scores, grad


@functools.cache
def load(native: bool = False) -> Compiled:
    """Returns the compiled kernels, building them if need be. See `build` for what is raised."""
    return Compiled(build(native))
