"""Cells composed from one base are what Hydra's own loader composes, to the last key."""

import itertools
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

from keepfrac.run import identity

ROOT = Path(__file__).resolve().parents[3]
sys.path.append(str(ROOT / "src/keepfrac/plugins"))

VALUES = ("keep_frac=0.1,0.30000000000000004", "lr=1e-5,2e-5", "seed=7")
GRIDS = {
    "values": VALUES,
    "groups": ("method=norm,lora", "task=rotten_tomatoes,csv", "seed=0,1"),
    "an experiment": ("experiment=demo", "method=norm,rand", "keep_frac=0.1,0.2"),
    "parts of groups": (
        "task=csv",
        "method=norm",
        "method.unit=column,token",
        "hardware.threads=1,2",
        "task.train_file='a b.csv'",
    ),
    "interpolations": ("keep_frac=0.1,0.2", "method.keep_frac=${keep_frac}", "eval_every=${batch_size}", "seed=0,1"),
    "lists and null": ("task=csv", "task.metrics=[accuracy,f1]", "steps=null,3", "distill.teacher=null"),
    "added keys": ("+task.more=1", "seed=0,1"),
    "an added key and its value": ("+task.more={a:1}", "task.more.a=2,3"),
    "dictionaries": ("model.config={model_type:bert,layers:2}", "seed=0,1"),
    "a removed key": ("task=csv", "~task.label", "seed=0,1"),
    "the launcher's": ("hydra.launcher.n_jobs=2", "seed=0,1"),
    "a group within hydra": ("hydra/job_logging=none", "seed=0,1"),
}


def grid(axes):
    return list(itertools.product(*map(words_of, axes)))


def words_of(axis: str) -> list[str]:
    key, equals, text = axis.partition("=")
    values = [text] if text[:1] in ("[", "{") else text.split(",")
    return [f"{key}{equals}{value}" for value in values]


@pytest.fixture
def pair():
    """Hydra's loader with a sweep's configuration, and what composes its cells here."""
    from hydra_plugins.proc_launcher._compose import Composer

    identity.register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        master = compose("config", overrides=["hydra.mode=MULTIRUN", "name=x"], return_hydra_config=True)
        yield lambda words: loader.load_sweep_config(master, list(words)), Composer(loader, master)


@pytest.mark.parametrize("axes", GRIDS.values(), ids=GRIDS)
def test_a_cell_is_what_hydra_composes(pair, axes):
    hydras, ours = pair
    for words in grid(axes):
        expected, found = hydras(words), ours(words)
        assert OmegaConf.to_container(found) == OmegaConf.to_container(expected), words
        if "???" not in str(OmegaConf.to_container(expected.model)):
            assert identity.plain(found) == identity.plain(expected), words


def test_hydra_composes_once_for_a_choice_of_groups(pair, monkeypatch):
    _, ours = pair
    original, composed = ours.loader.load_sweep_config, []
    monkeypatch.setattr(ours.loader, "load_sweep_config", lambda *args: composed.append(args) or original(*args))
    for words in grid(("method=norm,rand", *VALUES)):
        ours(words)
    assert len(composed) == 2


def test_the_sweeper_composes_only_for_launchers_that_do_not(tmp_path):
    from hydra_plugins.grid_sweeper import GridSweeper
    from hydra_plugins.proc_launcher import ProcLauncher
    from hydra_plugins.slurm_launcher import SlurmLauncher

    sweeper = GridSweeper(max_batch_size=None)
    sweeper.config = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}})
    (tmp_path / "multirun.yaml").write_text("hydra: {}\n")
    for launcher in (ProcLauncher(1), SlurmLauncher(1, (), {})):
        sweeper.launcher = launcher
        sweeper.validate_batch_is_legal([["no_such_key=1"]])
    sweeper.launcher = object()
    with pytest.raises((AssertionError, AttributeError)):  # it has nothing to compose from
        sweeper.validate_batch_is_legal([["no_such_key=1"]])


@pytest.mark.parametrize("word", ["keep_fracc=0.3", "method.unitt=column", "seed=1,2", "method=nrom", "lr@x=1"])
def test_what_hydra_refuses_is_refused_in_its_words(pair, word):
    hydras, ours = pair
    with pytest.raises(ConfigCompositionException) as expected:
        hydras([word])
    with pytest.raises(ConfigCompositionException) as found:
        ours([word])
    assert str(found.value) == str(expected.value)
