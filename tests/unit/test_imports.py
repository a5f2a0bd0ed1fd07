"""What every command imports first is light."""

import subprocess
import sys

import pytest

HEAVY = {
    "keepfrac": {"torch", "transformers", "numpy"},
    "keepfrac.storage.hub": {"torch", "pandas"},
    "keepfrac.storage.archives": {"torch", "pandas"},
    "keepfrac.sweep.planning": {"torch", "hydra", "numpy"},
    "src.report": {"torch", "transformers", "matplotlib", "pandas", "scipy"},
}


@pytest.mark.parametrize("module", HEAVY)
def test_nothing_heavy_is_imported(module, root):
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert not HEAVY[module] & {*done.stdout.split()}


def test_the_functions_need_neither_hydra_nor_lightning(root):
    code = "import sys, keepfrac; [keepfrac.function(name) for name in keepfrac.__all__]; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert not {"hydra", "omegaconf", "pytorch_lightning", "wandb", "datasets"} & {*done.stdout.split()}
