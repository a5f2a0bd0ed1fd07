"""The named sweeps: what their headers say, and that every value of every axis composes with the real configuration."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

CONF = Path(__file__).resolve().parents[3] / "conf"
FILES = sorted((CONF / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_is_a_sweep_named_after_itself(path: Path) -> None:
    experiment = OmegaConf.load(path)
    assert isinstance(experiment, DictConfig)
    assert experiment.hydra.mode == "MULTIRUN"
    assert experiment.name == path.stem


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_value_of_every_axis_composes(path: Path) -> None:
    axes = OmegaConf.load(path).hydra.sweeper.params
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for key, values in axes.items():
            for value in str(values).split(","):
                compose("config", overrides=[f"{key}={value}", f"experiment={path.stem}"])
