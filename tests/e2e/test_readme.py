"""The commands of the documents: each composes; those of the README are typed one after the other, with no network."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from keepfrac.run import identity
from tests.contract.test_conf import composed
from tests.contract.test_docs import DOCUMENTS, ROOT

TINY = ("model=bert_tiny", "task.rows=64", "epochs=1", "logger=csv", "probe_steps=1", "name=readme")


def commands(pattern: str) -> list[str]:
    """The indented commands of all documents that match, without comments, each once."""
    lines = [line for path in DOCUMENTS for line in path.read_text("utf-8").splitlines() if line.startswith("    ")]
    parts = [part.strip() for line in lines for part in re.split(r"\s#|&&", line)]
    return sorted({part for part in parts if re.match(pattern, part)})


def goals() -> list[str]:
    """The commands of the README's table of goals."""
    found = re.findall(r"^\| .* \| `((?:method|regularize)=[^`]*)`", (ROOT / "README.md").read_text("utf-8"), re.M)
    return [f"python -m src.main {words}" for words in found]


def overrides(command: str) -> list[str]:
    """The overrides of one run of a command: something for what the reader fills in, the first value of a sweep."""
    filled = re.sub(r"<[^>]*>", "something", command.replace("<its task>", "sst2"))
    words = [word for word in filled.split()[3:] if word != "-m"]
    parsed = OverridesParser.create().parse_overrides(words)
    first = [next(iter(one.sweep_string_iterator())) if one.is_sweep_override() else None for one in parsed]
    return [
        word if value is None else f"{one.key_or_group}={value}"
        for word, one, value in zip(words, parsed, first, strict=True)
    ]


@pytest.mark.parametrize("command", [*commands(r"python -m src\.main"), *goals()])
def test_a_command_of_the_documents_composes(command):
    identity.register()
    identity.check(composed(*overrides(command)))


@pytest.mark.parametrize("command", commands(r"python -m (?!src\.main)"))
def test_another_command_of_the_documents_has_its_module_and_options(command):
    module = command.split()[2]
    assert importlib.util.find_spec(module) is not None
    code = "".join(
        path.read_text("utf-8") for folder in ("src", "tests/bench") for path in ROOT.glob(f"{folder}/**/*.py")
    )
    assert [option for option in re.findall(r"--[\w-]+", command) if f'"{option}"' not in code] == []


@pytest.mark.parametrize("command", commands(r"make "))
def test_a_target_of_the_documents_exists(command):
    makefile = (ROOT / "Makefile").read_text("utf-8")
    target, *variables = re.sub(r"<[^>]*>", "something", command).split()[1:]
    assert re.search(rf"^{target}: ", makefile, re.M)
    known = re.search(r"^VARIABLES := (.*)$", makefile, re.M)[1].split()
    assert [one for one in variables if one.partition("=")[0] not in known] == []


@pytest.fixture(scope="module")
def typed(root, tmp_path_factory):
    """Returns a function that types a command; all write to one multirun folder."""
    multirun = tmp_path_factory.mktemp("multirun")

    def run(module: str, *words: str) -> subprocess.CompletedProcess:
        environment = os.environ | {"KEEPFRAC_MULTIRUN": str(multirun)}
        command = [sys.executable, "-m", module, *words]
        return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)

    run.multirun = multirun
    return run


def cell(typed, method: str) -> Path:
    (folder,) = typed.multirun.glob(f"readme/{method}_*")
    return folder


def test_a_sweep_ends_and_the_same_command_finds_it_done(typed):
    words = ("-m", "method=nosp,norm", "keep_frac=0.3", *TINY)
    first = typed("src.main", *words)
    assert first.returncode == 0, first.stderr
    assert "[2/2] done" in first.stdout
    again = typed("src.main", *words)
    assert again.returncode == 0 and "everything is done" in again.stdout


def test_a_bad_cell_is_one_line_before_anything_starts(typed):
    done = typed("src.main", "-m", "method=norm", "method.rule=top,typo", *TINY)
    assert done.returncode == 1 and "started" not in done.stdout
    assert "method.rule=typo: must be one of top" in done.stderr and len(done.stderr.splitlines()) == 1


def test_the_report_has_a_table_a_picture_and_a_page(typed):
    done = typed("src.report", str(typed.multirun / "readme"))
    assert done.returncode == 0 and "norm" in done.stdout
    written = {path.name for path in (typed.multirun / "readme").iterdir() if path.is_file()}
    assert {"report.md", "report.csv", "report.png", "report.html"} <= written


def test_the_ruler_measures_the_places(typed):
    done = typed("src.measure", str(cell(typed, "norm")), "--sites")
    assert done.returncode == 0 and "cosine_dw" in done.stdout


def test_evaluate_only(typed):
    folder = cell(typed, "nosp")
    words = ("epochs=0", "model=from_run", f"model.run={folder}", "task.rows=64", "logger=null", "name=again")
    done = typed("src.main", *words)
    assert done.returncode == 0, done.stderr
    assert list(typed.multirun.glob("again/*/results.json"))
