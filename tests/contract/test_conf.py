"""What holds for every yaml of every group, so that a new one is tested without an edit."""

import inspect
import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_class
from omegaconf import OmegaConf

from keepfrac.run import identity

CONF = Path(__file__).resolve().parents[2] / "conf"
GROUPS = ("model", "method", "task", "hardware", "logger", "export", "augment", "distill", "backward")
OPTIONS = [(group, path.stem) for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]
TARGETS = [(group, name) for group, name in OPTIONS if "_target_" in (CONF / group / f"{name}.yaml").read_text()]
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
# Given by the caller, not by the yaml.
GIVEN = {"net", "task", "loop"}


def composed(*overrides: str) -> dict:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", overrides=list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    cfg = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])
    return OmegaConf.to_container(cfg, resolve=True)


@pytest.mark.parametrize(("group", "name"), OPTIONS)
def test_each_option_composes_and_passes_the_checks(group, name):
    needs = {"from_run": ["model.run=somewhere"], "peft": ["method=lora", "method.merge=keep"]}
    identity.check(composed(f"{group}={name}", *needs.get(name, [])))


@pytest.mark.parametrize(("group", "name"), TARGETS)
def test_yaml_keys_are_the_constructors_arguments_and_each_is_documented(group, name):
    settings = composed(f"{group}={name}")[group]
    target = get_class(settings["_target_"])
    if hasattr(target, "Settings"):
        assert set(settings) - {"_target_"} == {*target.Settings.names()}
        return
    parameters = inspect.signature(target.__init__).parameters
    arguments = {key for key in parameters if key != "self"} - GIVEN
    assert set(settings) - {"_target_"} == arguments
    documented = "\n".join(inspect.getdoc(base) or "" for base in target.__mro__[:-1])
    for argument in arguments:
        assert re.search(rf"^\s*{argument}: ", documented, re.M), f"{target.__name__} does not document {argument}"
    assert all(parameters[key].default is inspect.Parameter.empty for key in arguments), "defaults live in yaml"


@pytest.mark.parametrize("name", [name for group, name in OPTIONS if group == "method"])
def test_a_method_says_what_its_keep_frac_keeps(name):
    text = (CONF / "method" / f"{name}.yaml").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("keep_frac:")]
    assert "#" in line, "the comment says of what"
    assert composed(f"method={name}")["method"]["name"] == name


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_gives_its_command_time_and_expected_result(name):
    lines = (CONF / "experiment" / f"{name}.yaml").read_text().splitlines()
    header = "\n".join(line for line in lines if line.startswith("#"))
    assert f"experiment={name}" in header
    assert "Time:" in header and "Result:" in header


def test_methods_override_only_the_hooks():
    from keepfrac.training.finetune import FineTune

    hooks = {
        "prepare",
        "param_groups",
        "losses",
        "after_step",
        "finish",
        "kept",
        "watched",
        "own_layers",
        "settled_at",
        "wants",
    }
    hooks |= {"get_extra_state", "set_extra_state", "__init__"}
    import pytorch_lightning as pl

    lightning = {name for name in dir(pl.LightningModule) if not name.startswith("_")}
    loop = {name for name in vars(FineTune) if not name.startswith("_")}
    for name in {composed(f"method={name}")["method"]["_target_"] for group, name in OPTIONS if group == "method"}:
        for base in get_class(name).__mro__:
            if issubclass(base, FineTune) and base is not FineTune:
                assert not (set(vars(base)) & (lightning | loop)) - hooks
