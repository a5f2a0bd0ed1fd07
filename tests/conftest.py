"""What every test shares: no network, no account, no trace outside temporary folders, the real data sets."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OWNER = "KEEPFRAC_TESTS" not in os.environ  # workers of pytest-xdist share the folder, and with it what is compiled
SCRATCH = Path(os.environ.setdefault("KEEPFRAC_TESTS", tempfile.mkdtemp(prefix="keepfrac-tests-") if OWNER else ""))

# Before anything heavy is imported: libraries read the environment once, at import. Children inherit it.
os.environ.update(
    HF_HUB_OFFLINE="1",
    KEEPFRAC_HUB="offline",
    HF_HOME=str(SCRATCH / "huggingface"),
    XDG_CACHE_HOME=str(SCRATCH / "cache"),
    KEEPFRAC_MULTIRUN=str(SCRATCH / os.environ.get("PYTEST_XDIST_WORKER", "main") / "multirun"),
    WANDB_MODE="offline",
    WANDB_SILENT="true",
    WANDB_CACHE_DIR=str(SCRATCH / "wandb"),
    WANDB_CONFIG_DIR=str(SCRATCH / "wandb"),
    WANDB_DATA_DIR=str(SCRATCH / "wandb"),
    TOKENIZERS_PARALLELISM="false",
    MPLBACKEND="agg",
    # children that import the package need not have it installed
    PYTHONPATH=os.pathsep.join(filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH")))),
    # bitwise comparisons need one number of threads, in this process and in its children; workers share the cores
    OMP_NUM_THREADS="1",
)
for _key in ("WANDB_API_KEY", "HF_TOKEN", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "TRANSFORMERS_CACHE"):
    os.environ.pop(_key, None)


def pytest_unconfigure() -> None:
    if OWNER:
        shutil.rmtree(SCRATCH, ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch  # only now: it takes seconds

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU here"))


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's root, from which every command runs."""
    return ROOT


@pytest.fixture(scope="session")
def cli():
    """`cli("src.main", "method=norm")` runs a module as a command from the root and returns the process."""

    def run(module: str, *arguments: str, options=(), timeout=240, **environment: str):
        command = [sys.executable, *options, "-m", module, *arguments]
        return subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run


def _folder_of(variable: str) -> Path:
    folder = os.environ.get(variable)
    if not folder:
        pytest.skip(f"{variable} names no folder: set it to your own copy of that data")
    path = Path(folder)
    assert path.is_dir(), f"{variable}={folder} is no folder"
    return path


@pytest.fixture(scope="session")
def glue_data() -> Path:
    """A folder in GLUE's classic layout (SST-2/, MRPC/, ...)."""
    return _folder_of("GLUE_DATA")


@pytest.fixture(scope="session")
def gaiic_data() -> Path:
    """The folder of the GAIIC-2021 reports."""
    return _folder_of("GAIIC_DATA")


@pytest.fixture(scope="session")
def e2e_data() -> Path:
    """The folder of the E2E challenge's csv files."""
    return _folder_of("E2E_DATA")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Each test starts from the same random numbers, whichever tests ran before it."""
    import random

    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
