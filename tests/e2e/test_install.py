"""Which torch `.ci/install.sh` fetches, and what it says first: with a stand-in for .venv/bin/python."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# Answers as the real one would; what it is asked to install goes to asked.txt.
STAND_IN = """#!/bin/sh
case "$*" in
    *--version*) exit 0;;
    "-c import importlib"*) {installed};;
    *--dry-run*) {local};;
    "- https"*) exit {unreachable};;
    "- "*) echo numpy;;
    *) echo "$*" >>asked.txt;;
esac
"""


@pytest.fixture
def install(tmp_path: Path, root: Path):
    """Runs the script in a folder with stand-ins; what it said, and the pip commands it gave."""

    def run(local="exit 1", installed="exit 1", reachable=True, gpu=False, **settings: str):
        folder = tmp_path / "a clone"
        shutil.copytree(root / ".ci", folder / ".ci", dirs_exist_ok=True)
        shutil.copy(root / "pyproject.toml", folder / "pyproject.toml")
        stand_in = STAND_IN.format(local=local, installed=installed, unreachable=int(not reachable))
        executable(folder / ".venv" / "bin" / "python", stand_in)
        executable(folder / "bin" / "nvidia-smi", f"#!/bin/sh\nexit {int(not gpu)}\n")
        executable(folder / "bin" / "uname", "#!/bin/sh\necho Linux\n")
        path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "TORCH_INDEX": "", "PYTHON": "", **settings}
        done = subprocess.run(
            ["bash", ".ci/install.sh", "run"], cwd=folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert (folder / ".venv" / ".installed-run").exists()
        return done.stdout, (folder / "asked.txt").read_text().splitlines()

    return run


def executable(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    path.chmod(0o755)


def test_torch_comes_first_and_the_rest_cannot_replace_it(install):
    _, asked = install()
    torch, rest, data = asked
    assert "--no-deps" in torch
    assert "torch==" in torch
    assert "-c .ci/constraints.txt" in rest
    assert "--no-deps --require-hashes -r .ci/requirements-data.txt" in data


def test_the_environment_finds_the_package_of_this_clone(install, tmp_path: Path):
    packages = tmp_path / "a clone" / ".venv" / "lib" / "python3.11" / "site-packages"
    packages.mkdir(parents=True)
    install()
    assert (packages / "keepfrac.pth").read_text() == f"{tmp_path / 'a clone' / 'src'}\n"


def test_a_local_wheel_goes_first(install):
    said, asked = install(local="echo Would install torch-2.13.0+cpu")
    assert "2.13.0+cpu" in said
    assert "--index-url" not in asked[0]


def test_without_a_gpu_the_cpu_index(install):
    said, asked = install()
    assert "CPU build" in said
    assert f"--index-url {CPU_INDEX}" in asked[0]


def test_without_a_gpu_and_that_index_it_warns_of_the_size(install):
    said, asked = install(reachable=False)
    assert "several GB" in said
    assert "TORCH_INDEX=" in said
    assert "--index-url" not in asked[0]


def test_with_a_gpu_the_cuda_build(install):
    said, asked = install(gpu=True)
    assert "CUDA build" in said
    assert "--index-url" not in asked[0]


def test_torch_index_decides(install):
    said, asked = install(local="echo Would install torch-2.13.0+cpu", gpu=True, TORCH_INDEX="https://an.index/x")
    assert "https://an.index/x" in said
    assert "--index-url https://an.index/x" in asked[0]


def test_the_right_torch_is_left_alone(install, root: Path):
    lines = (root / ".ci/constraints.txt").read_text().splitlines()
    version = next(line for line in lines if line.startswith("torch==")).split("==")[1]
    _, asked = install(installed=f"echo {version}+cu130")
    assert not any("torch==" in command for command in asked)
