"""Which kernels run: by choice, device and dtype, and what happens where they cannot be had."""

import sys
from types import SimpleNamespace

import pytest
import torch

from keepfrac.errors import UserError
from keepfrac.sparse import kernels
from keepfrac.sparse.kernels import plain

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def nothing_remembered():
    caches = (kernels._compiled_or_none, kernels._launched_or_none)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def test_without_a_compiler_auto_falls_back_and_cpp_refuses(monkeypatch, caplog):
    def no_compiler(native=False):
        raise UserError("the C++ kernels cannot be built here: no compiler")

    monkeypatch.setattr(kernels, "load", no_compiler)
    assert kernels.prepare("auto", CPU) == "torch"
    assert kernels.kernels_for("auto", torch.zeros(1), torch.float32) is plain
    assert "plain PyTorch" in caplog.text
    with pytest.raises(UserError, match="no compiler"):
        kernels.prepare("cpp", CPU)


def test_dtypes_that_the_kernels_lack_run_in_plain_pytorch():
    for choice in ("cpp", "triton"):
        assert kernels.kernels_for(choice, torch.zeros(1, dtype=torch.float64), torch.float64) is plain
    assert kernels.kernels_for("torch", torch.zeros(1), torch.float32) is plain
    with pytest.raises(UserError, match="choose among"):
        kernels.prepare("cuda", CPU)


def test_triton_on_a_cpu_is_one_clear_error(monkeypatch):
    """Whether Triton is installed or not; the interpreter's tests are in test_triton.py."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"^kernels=triton") as refused:
        kernels.prepare("triton", CPU)
    assert "\n" not in str(refused.value)


def test_without_triton_a_gpu_falls_back_with_auto_and_is_refused_with_triton(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "keepfrac.sparse.kernels.triton_kernels", raising=False)
    monkeypatch.delattr(kernels, "triton_kernels", raising=False)
    x = SimpleNamespace(device=torch.device("cuda"), dtype=torch.float32)
    assert kernels.kernels_for("auto", x, torch.float32) is plain
    assert "no Triton kernels" in caplog.text and "plain PyTorch" in caplog.text
    with pytest.raises(UserError, match="Triton cannot be imported"):
        kernels.kernels_for("triton", x, torch.float32)
    assert kernels.kernels_for("cpp", x, torch.float32) is plain
