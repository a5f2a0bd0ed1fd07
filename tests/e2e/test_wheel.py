"""The wheel holds the package and what it reads, and works without the repository."""

import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

PROMISED = ("py.typed", "sparse/kernels/*.cpp", "sparse/kernels/*.h", "reporting/page/assets/*")
PROGRAM = """
import sys
import keepfrac
assert keepfrac.__file__.startswith(sys.argv[1]), keepfrac.__file__
heavy = {"torch", "hydra", "transformers", "pytorch_lightning"} & set(sys.modules)
assert not heavy, heavy
assert all(getattr(keepfrac, name) for name in getattr(keepfrac, "__all__", ()))
"""


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory) -> zipfile.ZipFile:
    """The wheel of a copy of what it is built from: a build leaves folders beside its sources."""
    if importlib.util.find_spec("setuptools") is None:
        pytest.skip("setuptools, which builds the wheel, is not installed")
    import shutil

    clone = tmp_path_factory.mktemp("clone")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, clone / name)
    shutil.copytree(root / "src", clone / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-q", "-w", "out"]
    done = subprocess.run([*build, "."], cwd=clone, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = (clone / "out").glob("keepfrac-*.whl")
    return zipfile.ZipFile(path)


def test_it_holds_the_package_and_what_it_reads_and_nothing_else(root: Path, wheel: zipfile.ZipFile):
    package, names = root / "src" / "keepfrac", set(wheel.namelist())
    for pattern in ("**/*.py", *PROMISED):
        files = [path for path in package.glob(pattern) if path.is_file()]
        assert files, pattern
        assert {f"keepfrac/{path.relative_to(package).as_posix()}" for path in files} <= names
    assert all(name.startswith(("keepfrac/", "keepfrac-")) for name in names)


def test_it_is_imported_without_the_repository(wheel: zipfile.ZipFile, tmp_path: Path):
    wheel.extractall(tmp_path / "site")
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "site")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
