"""What holds for every yaml of every group, so that a new one is tested without an edit."""

import inspect
import re
import sys
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
import pytorch_lightning as pl
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_class
from omegaconf import OmegaConf

from keepfrac.run import identity
from keepfrac.training.adapter_tuning import AdapterTuning
from keepfrac.training.finetune import FineTune
from keepfrac.training.structured_pruning import UnitPruner
from keepfrac.training.weight_pruning import WeightPruner

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
def test_yaml_keys_are_the_settings_and_each_is_documented(group, name):
    given = composed(f"{group}={name}")[group]
    target = get_class(given["_target_"])
    if not hasattr(target, "Settings"):
        keys_are_arguments(given, target)
        return
    assert set(given) - {"_target_"} == set(target.Settings.names())
    for field in fields(target.Settings):
        assert field.metadata["doc"] and field.metadata["kind"].says, (
            f"{target.__name__} does not document {field.name}"
        )
        assert field.default is field.default_factory is MISSING, "defaults live in yaml"
    assert group in (target.Settings.where, "")


def keys_are_arguments(given, target):
    parameters = inspect.signature(target.__init__).parameters
    arguments = {key for key in parameters if key != "self"} - GIVEN
    assert set(given) - {"_target_"} == arguments
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


METHODS = sorted({composed(f"method={name}")["method"]["_target_"] for group, name in OPTIONS if group == "method"})


def documented_hooks(base: type) -> set[str]:
    """The hooks that a base class's module lists, by the names at which its indented lines begin."""
    return set(re.findall(r"^    (\w+)", sys.modules[base.__module__].__doc__, re.M))


@pytest.mark.parametrize("target", METHODS)
def test_a_method_overrides_documented_hooks_alone(target):
    """Neither Lightning's own methods, nor private ones, nor what else the base classes of `training` do."""
    lightning = {name for name in dir(pl.LightningModule) if not name.startswith("_")}
    line = [base for base in get_class(target).__mro__ if issubclass(base, FineTune)]
    for place, base in enumerate(line[:-1]):
        hooks = set().union(*(documented_hooks(above) for above in line[place + 1 :]))
        above = lightning.union(*(vars(other) for other in line[place + 1 :]))
        overridden = {name for name in set(vars(base)) & above if not name.startswith("__")}
        assert not overridden - hooks - {"Settings"}, base


@pytest.mark.parametrize("base", [FineTune, UnitPruner, WeightPruner, AdapterTuning])
def test_each_documented_hook_is_there(base):
    own = {name for name in documented_hooks(base) if f"{name}(" in sys.modules[base.__module__].__doc__}
    assert own and all(hasattr(base, name) for name in own)
