"""The Triton kernels: run by the interpreter, or by a GPU, each in a process of its own; compiled for GPUs not here."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is not installed: it comes with `make test`, on Linux")

CASES = [Path(__file__).with_name(name) for name in ("test_twins.py", "triton_layer.py")]
ROOT = Path(__file__).parents[4]
TYPES = {
    torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int8: "*i8", torch.uint8: "*u8",
    torch.int64: "*i64",
}  # fmt: skip


def run_cases(**environment: str) -> None:
    """Triton decides while it is imported whether it interprets, and this process may have imported it."""
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, CASES)],
        cwd=ROOT,
        env={**os.environ, "KERNELS": "triton", **environment},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert ended.returncode == 0, ended.stdout[-6000:] + ended.stderr[-2000:]


def test_in_the_interpreter():
    run_cases(TRITON_INTERPRET="1")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
def test_on_a_gpu():
    run_cases(TRITON_INTERPRET="0")


def type_of(parameter, value) -> str:
    if parameter.is_constexpr or value is None:
        return "constexpr"
    if isinstance(value, torch.Tensor):
        return TYPES[value.dtype]
    return "i32" if isinstance(value, int) else "fp32"


@pytest.fixture
def compiled(monkeypatch, tmp_path):
    """Launches compile instead, and nothing runs; the machine code of each launch is listed."""
    from triton.backends.compiler import GPUTarget

    from keepfrac.sparse.kernels import triton_kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    found = []

    def compile_only(kernel, grid, *values, elements, **constants):
        given = dict(zip(kernel.arg_names, values, strict=False)) | constants
        types = {one.name: type_of(one, given[one.name]) for one in kernel.params}
        fixed = {name: given[name] for name, kind in types.items() if kind == "constexpr"}
        source = triton.compiler.ASTSource(kernel, types, fixed)
        options = {"num_warps": max(1, min(8, elements // 256))}
        # 8.0: the oldest with bfloat16
        binary = triton.compile(source, target=GPUTarget("cuda", 80, 32), options=options)
        found.append((kernel.__name__, binary.asm["ptx"], binary.asm["cubin"]))

    monkeypatch.setattr(triton_kernels, "_launch", compile_only)
    return triton_kernels, found


def test_every_kernel_compiles_for_a_gpu(compiled):
    """What the interpreter does not look at: types, shapes that are powers of 2, what is known when."""
    kernels, found = compiled
    x, h, inner = torch.zeros(4, 100), torch.zeros(4, 100).bfloat16(), torch.zeros(4, 300).bfloat16()
    gamma, index, weight = torch.zeros(100), torch.arange(2), torch.zeros(2)
    room = (torch.zeros(4, 300, dtype=torch.uint8), torch.zeros(4, 5, 2).bfloat16())
    hat = (torch.zeros(4, 100, dtype=torch.int8), torch.zeros(4, 4).bfloat16())
    scores = torch.zeros(2, 4, 4).bfloat16()
    kernels.pack(h, torch.int8)
    kernels.unpack(*hat, index, gamma, gamma, weight, torch.bfloat16)
    kernels.add_norm(h, x, gamma, gamma, 1e-6, 0.1, 1 << 40 | 5, torch.int8)
    kernels.add_norm_grad(x, *hat, weight.repeat(2), gamma, 0.1, 1 << 40 | 5, torch.bfloat16)
    kernels.gelu_(inner, *room)
    kernels.gelu_rows(*room, index, None, torch.float32)
    kernels.gelu_grad_(inner[:2], *room, index)
    kernels.softmax_grad_(scores, scores, 0.5, torch.zeros(4), 0.1, 7)
    kernels.softmax_(scores, 0.5, None, 0.0, 7)
    names = {"pack", "unpack", "add_norm", "add_norm_grad", "gelu_grad", "softmax"}
    assert {name for name, *_ in found} == names and len(found) == 9
    for _name, ptx, cubin in found:
        assert ".target sm_80" in ptx and cubin
