"""What every command imports first is light."""

import subprocess
import sys

import pytest

HEAVY = {
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
