"""What the Slurm launcher says before anything is submitted; sweeps on a real Slurm are in tests/slurm."""

import inspect
import os
import re
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from keepfrac.run import identity

ROOT = Path(__file__).resolve().parents[3]
sys.path.append(str(ROOT / "src/keepfrac/plugins"))


@pytest.fixture
def sbatch(tmp_path) -> str:
    """A PATH on which there is an sbatch that must not be called."""
    program = tmp_path / "sbatch"
    program.write_text("#!/bin/sh\nexit 99\n")
    program.chmod(0o755)
    return f"{tmp_path}:{os.environ['PATH']}"


@pytest.mark.parametrize("name", ["slurm_cpu", "slurm_gpu"])
def test_yaml_keys_are_the_launchers_arguments_and_each_is_documented(name):
    from hydra_plugins.slurm_launcher import SlurmLauncher

    from keepfrac.sweep.slurm import Request

    identity.register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("config", [f"hardware={name}", "hardware.devices=2"], return_hydra_config=True)
    keys = OmegaConf.to_container(cfg.hydra.launcher, resolve=True)
    arguments = {"n_jobs", *inspect.signature(Request).parameters}
    assert set(keys) - {"_target_"} == arguments
    assert keys["tasks"] == 2 and keys["gpus"] == (2 if name == "slurm_gpu" else 0)
    documented = f"{inspect.getdoc(SlurmLauncher)}\n{inspect.getdoc(Request)}"
    for argument in arguments:
        assert re.search(rf"^\s*{argument}: ", documented, re.M), argument


def test_a_key_that_slurm_has_not_is_refused(cli, sbatch):
    done = cli("src.main", "hardware=slurm_cpu", "hydra.launcher.partitoin=long", PATH=sbatch)
    assert done.returncode == 1
    assert done.stderr.startswith("error: hydra.launcher.partitoin: no such key"), done.stderr


def test_no_slurm_is_one_clear_sentence(cli, tmp_path):
    done = cli("src.main", "hardware=slurm_cpu", PATH=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.startswith("error: hardware=slurm_cpu needs Slurm, and there is no sbatch here"), done.stderr


def test_a_precision_that_differs_between_machines_is_refused(cli, sbatch):
    pytest.importorskip("submitit", reason="submitit: make install-slurm")
    done = cli("src.main", "hardware=slurm_cpu", "hardware.precision=auto", PATH=sbatch)
    assert done.returncode == 1
    assert "must be 32-true or bf16-mixed" in done.stderr and "Traceback" not in done.stderr
