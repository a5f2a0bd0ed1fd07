"""What cannot be is said in a line or two, with what was typed and what is allowed, and nothing that is done is lost.

The tables are in bad_inputs.py. All but those of make run in this process: the command's own main, where no step is
trained and no job of a sweep is started.
"""

import importlib
import json
import logging
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins

from keepfrac.errors import UserError
from keepfrac.run.run import run
from tests.contract import bad_inputs
from tests.contract.settings_of import made

ROOT = Path(__file__).resolve().parents[2]
OFF = ["model=bert_tiny", "logger=none", "probe_steps=0", "hardware.precision=32-true"]


class Began(BaseException):
    """A run or a job began; no command catches it."""


def complaint(text: str, said: str | None, typed: str = "") -> str:
    """The message of a command: at most three lines, no traceback, what was typed in it."""
    lines = [line for line in text.splitlines() if line.strip()]
    assert 1 <= len(lines) <= 3 and "Traceback" not in text, text
    key, _, value = (typed.split() or [""])[-1].lstrip("+~").partition("=")
    parts = [said] if said else [re.escape(key.rpartition(".")[2]), re.escape(value.strip("[]"))]
    assert all(re.search(part, text) for part in parts), text
    return text


def files(folder: Path) -> dict[Path, bytes]:
    """What stands in a folder, but for what has no result in it."""
    others = ("multirun.yaml", ".lock", "run.log")
    found = (path for path in folder.rglob("*") if path.is_file() and path.name not in others)
    return {path: path.read_bytes() for path in found}


def finished(**changes) -> str:
    """A finished run's results.json."""
    config = {"task": {"name": "csv"}, "model": {"name": "m"}, "lr": 0.001, "seed": 0}
    config["method"] = {"name": "norm", "keep_frac": 0.3}
    scores = {f"{split}/{name}": 0.5 for split in ("val", "test") for name in ("accuracy", "loss")}
    whole = {"schema_version": 1, "status": "done", "error": None, "identity": "0123456789ab", "config": config}
    whole |= {"provenance": {"argv": []}, "best_metric": "accuracy", "direction": "max", "scores": scores}
    return json.dumps(whole | {"kept": {}, "size": {}, "cost": {}} | changes)


def write(folder: Path, content: str | bytes) -> None:
    folder.mkdir(parents=True)
    (folder / "results.json").write_bytes(content.encode() if isinstance(content, str) else content)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder of one's own, from which commands are called, with a finished run; it is as it was at the end."""
    write(tmp_path / "multirun" / "runs" / "cell", finished())
    write(tmp_path / "sweep" / "good", finished())
    write(tmp_path / "sweep" / "torn", b"{")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("a,b\n1,2\n")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    monkeypatch.setenv("KEEPFRAC_MULTIRUN", str(tmp_path / "multirun"))
    monkeypatch.chdir(tmp_path)
    before = files(tmp_path)
    yield tmp_path
    assert files(tmp_path) == before


@pytest.fixture
def command(monkeypatch, capsys):
    """Returns a function that calls a command's main with some words; it gives the exit code and stderr."""

    def call(module: str, words: list[str]) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", [module, *words])
        main = importlib.import_module(module).main
        root = logging.getLogger()
        handlers, level = list(root.handlers), root.level
        try:
            code = main() if module == "src.main" else main(words)
        except SystemExit as ended:
            code = ended.code
        finally:
            root.handlers[:] = handlers
            root.setLevel(level)
            HydraConfig.instance().cfg = None  # a run in this process would read it
        return code, capsys.readouterr().err

    return call


@pytest.fixture(scope="module")
def plugins():
    """Hydra knows the launchers and the sweeper, also where it was used before src.main said where they are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HYDRA_FULL_ERROR", "")  # which src.main sets, for its own process
        importlib.import_module("src.main")
    Plugins.instance()._initialize()


@pytest.fixture
def start(plugins, command, place, csv_folder, monkeypatch):
    """Returns a function that types words of `python -m src.main` beside those of a run that could begin."""

    def begin(*_):
        raise Began

    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # as src.main sets it, for itself alone
    # it composes everything once more
    monkeypatch.setattr("hydra._internal.hydra.Hydra.get_mode", lambda *_, **__: None)
    monkeypatch.setattr("keepfrac.run.run._run", begin)
    monkeypatch.setattr(importlib.import_module("hydra_plugins.proc_launcher._pool").Pool, "run", begin)
    data = [f"task.{name}_file={csv_folder}/{name}.csv" for name in ("train", "validation", "test")]
    own = [*OFF, "task=csv", *data]

    def type_(words: str) -> tuple[int, str]:
        typed = shlex.split(words)
        return command("src.main", [*(() if "task=mlm" in typed else own), *typed])

    return type_


@pytest.mark.parametrize("words", ["lr=0.1", "-m lr=0.1,0.2"])
def test_a_run_of_these_words_would_begin(start, words):
    with pytest.raises(Began):
        start(words)


@pytest.mark.parametrize(("method", "changed", "said"), bad_inputs.SETTINGS)
def test_a_setting_of_a_method(method, changed, said):
    changed = bad_inputs.RANKS | changed if method == "l0" else changed
    with pytest.raises(UserError) as caught:
        made(method, **changed)
    (message,) = str(caught.value).splitlines()
    complaint(message, said)


@pytest.mark.parametrize(("method", "words", "said"), bad_inputs.RUNS)
def test_what_data_and_model_do_not_allow(composed, untrained, method, words, said):
    with pytest.raises(UserError) as caught:
        run(composed(f"method={method}", *words.split()))
    complaint(str(caught.value), said, words.split()[0])


@pytest.mark.parametrize(("method", "words", "said"), bad_inputs.ON_DECODERS)
def test_what_is_not_for_decoders(e2e, untrained, method, words, said):
    with pytest.raises(UserError) as caught:
        run(e2e(f"method={method}", "keep_frac=0.5", *words.split()))
    complaint(str(caught.value), said)


@pytest.mark.parametrize(("words", "said"), bad_inputs.TYPED, ids=[words for words, _ in bad_inputs.TYPED])
def test_words_of_a_run(start, words, said):
    code, text = start(words.replace('"', '\\"') if "${" not in words else f"'{words}'")
    assert code == 1 and text.startswith("error: ")
    complaint(text, said, words)


@pytest.mark.parametrize(("variables", "words", "said"), bad_inputs.ENVIRONMENT)
def test_variables_of_the_environment(start, monkeypatch, variables, words, said):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    code, text = start(words)
    assert code == 1
    complaint(text, said)


@pytest.mark.parametrize(("module", "words", "code", "said"), bad_inputs.COMMANDS)
def test_words_of_the_other_commands(command, place, module, words, code, said):
    found, text = command(module, shlex.split(words.replace("{}", str(place))))
    assert found == code and text.startswith("error: ")
    complaint(text, said)


def test_one_damaged_run_does_not_end_the_report_of_the_others(command, tmp_path, monkeypatch, capsys):
    from rich.console import Console

    monkeypatch.setattr("keepfrac.reporting.terminal.console", lambda: Console(width=200))
    for name, changes in bad_inputs.DAMAGED.items():
        write(tmp_path / name, finished(**{"identity": name, **changes}))
    for name, content in bad_inputs.TORN.items():
        write(tmp_path / name, content)
    write(tmp_path / "good", finished())
    code, text = command("src.report", [str(tmp_path), "--no-picture"])
    assert (code, text) == (0, "")
    table = (tmp_path / "report.md").read_text() + (tmp_path / "report.csv").read_text()
    damaged = {*bad_inputs.DAMAGED, *bad_inputs.TORN} - {"data", "versions"}
    assert not [name for name in damaged if name not in table]
    assert "norm" in (tmp_path / "report.csv").read_text()


def make(folder: Path, target: str, variables: list[str], *options: str) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if "MAKE" not in name}
    words = ["make", *options, target, *variables]
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def clone(tmp_path):
    """A folder that is set up, whose python writes its words down, and says where a run's folder is."""
    for name in ("Makefile", "pyproject.toml", ".ci"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, tmp_path / name)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@" >> typed.txt\necho "done: multirun/a/b"\n')
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    for ready in ("run", "dev", "baselines", "generation"):
        (tmp_path / ".venv" / f".installed-{ready}").touch()
    return tmp_path


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="no make here")


@needs_make
@pytest.mark.parametrize(("target", "variables", "said"), bad_inputs.MADE)
def test_variables_of_make(clone, target, variables, said):
    done = make(clone, target, variables)
    assert done.returncode == 2
    complaint(done.stderr, said)
    assert not {path.name for path in clone.iterdir()} & {"typed.txt", "pwned"}


@needs_make
def test_a_variable_of_the_environment_is_no_command_of_make(clone, monkeypatch):
    monkeypatch.setenv("SWEEP", "$(shell touch pwned)")
    done = make(clone, "sync", [])
    assert done.returncode == 2 and "SWEEP=$(shell touch pwned)" in done.stderr
    assert not (clone / "pwned").exists()


@needs_make
@pytest.mark.parametrize(("target", "variables", "words"), bad_inputs.QUOTED)
def test_make_hands_values_on_as_they_are(clone, target, variables, words):
    done = make(clone, target, variables)
    assert done.returncode == 0, done.stderr
    typed = (clone / "typed.txt").read_text().splitlines()
    assert not [word for word in words if word not in typed], typed
    assert not (clone / "pwned").exists()
