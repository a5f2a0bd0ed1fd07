"""The parts of the launcher that need no process."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from omegaconf import OmegaConf

from keepfrac.errors import UserError

PLUGINS = str(Path(__file__).resolve().parents[3] / "src" / "keepfrac" / "plugins")


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(PLUGINS)
    import hydra_plugins.proc_launcher as plugin

    return plugin


def test_hydra_plugins_is_a_namespace() -> None:
    # a regular package would hide the launchers of other distributions
    assert not (Path(PLUGINS) / "hydra_plugins" / "__init__.py").exists()


def test_program_is_the_module_of_the_task(plugin: ModuleType) -> None:
    assert plugin.program(SimpleNamespace(__module__="src.main")) == [sys.executable, "-m", "src.main"]


@pytest.mark.parametrize(
    ("spec", "end"), [(SimpleNamespace(name="src.main"), ["-m", "src.main"]), (None, [str(Path("here.py").absolute())])]
)
def test_program_of_a_main_module(plugin: ModuleType, monkeypatch: pytest.MonkeyPatch, spec, end) -> None:
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__spec__=spec))
    monkeypatch.setattr(sys, "argv", ["here.py"])
    assert plugin.program(SimpleNamespace(__module__="__main__")) == [sys.executable, *end]


def test_config_flags_are_handed_on(plugin: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = [{"path": "/conf", "provider": "main"}, {"path": "/mine", "provider": "command-line"}]
    config = OmegaConf.create({"hydra": {"job": {"config_name": "other"}, "runtime": {"config_sources": sources}}})
    monkeypatch.setattr(sys, "argv", ["main", "--config-name=other", "-m"])
    assert plugin.config_flags(config) == ["--config-name", "other", "--config-dir", "/mine"]
    monkeypatch.setattr(sys, "argv", ["main", "-m"])
    assert plugin.config_flags(config) == ["--config-dir", "/mine"]


def test_a_folder_is_quoted_for_hydra(plugin: ModuleType) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    launcher = plugin.ProcLauncher(n_jobs=1)
    launcher.command = ["python", "-m", "src.main"]
    folder = Path("/it's, a=b/é ü/[x]{y}$")
    job = SimpleNamespace(folder=folder, overrides=("method=norm",))
    *command, mode, run_dir = launcher._command_of(job)
    assert [*command, mode] == ["python", "-m", "src.main", "method=norm", "hydra.mode=RUN"]
    assert OverridesParser.create().parse_override(run_dir).value() == str(folder)


@pytest.mark.parametrize("n_jobs", [0, -1, 1.5, True, "two", None])
def test_n_jobs_is_a_whole_number(plugin: ModuleType, n_jobs) -> None:
    with pytest.raises(UserError, match=f"n_jobs={n_jobs}: must be a whole number >= 1"):
        plugin.ProcLauncher(n_jobs).setup(hydra_context=None, task_function=None, config=None)
