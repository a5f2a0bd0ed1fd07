"""The command line as a person meets it: fast help, and one clear line for each mistake."""

import itertools
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {"torch", "transformers", "pytorch_lightning", "datasets", "wandb", "torchmetrics", "matplotlib", "pandas"}


def imported(importtime: str) -> set[str]:
    """The top-level names in what `python -X importtime` wrote."""
    lines = (line.rsplit("|", 1)[-1].strip() for line in importtime.splitlines() if "import time:" in line)
    return {name.split(".")[0] for name in lines}


def complaint(done) -> str:
    """The one line that a failed command left on stderr."""
    assert done.returncode != 0
    assert "Traceback" not in done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.mark.parametrize("arguments", [("--help",), ("--cfg", "job"), ("keep_frac=2",), ("method=typo",)])
def test_answers_without_heavy_imports(cli, arguments):
    # What is imported, not the seconds: a busy machine is slow, an import of torch is a mistake
    done = cli("src.main", *arguments, options=("-X", "importtime"))
    names = imported(done.stderr)
    assert "hydra" in names
    assert not names & HEAVY


def test_help_names_the_groups_and_an_example(cli):
    done = cli("src.main", "--help")
    assert done.returncode == 0
    assert done.stderr == ""
    for word in ("method", "task", "model", "keep_frac", "python -m src.main"):
        assert word in done.stdout


def test_help_describes_each_method(cli, root: Path):
    shown = cli("src.main", "--help").stdout
    for option in (root / "conf/method").glob("*.yaml"):
        comment = itertools.takewhile(lambda line: line.startswith("#"), option.read_text().splitlines())
        sentence = " ".join(line.lstrip("# ") for line in comment).partition(". ")[0]
        assert f"{option.stem} " in shown and sentence.rstrip(".") in shown


def test_the_version_is_ours(cli, root: Path):
    assert f'version = "{cli("src.main", "--version").stdout.split()[-1]}"' in (root / "pyproject.toml").read_text()


def test_bash_completes_methods(cli, root: Path):
    script = cli("src.main", "--shell-completion", "install=bash").stdout
    line = f"{sys.executable} -m src.main method=nos"
    asked = f"COMP_LINE='{line}'; COMP_WORDS=({line}); COMP_CWORD=3; _keepfrac; echo ${{COMPREPLY[@]}}"
    done = subprocess.run(["bash", "-c", f"{script}\n{asked}"], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "method=nosp", done.stderr


def test_a_sweep_may_be_asked_for_behind_what_it_is_over(cli):
    line = complaint(cli("src.main", "method=norm", "-m", "keep_frac=0.3,7"))
    assert line == "error: cell method=norm keep_frac=7: keep_frac=7: must be a number in (0, 1]"


def test_cfg_job_prints_the_config(cli):
    done = cli("src.main", "--cfg", "job", "method=norm", "keep_frac=0.3")
    assert done.returncode == 0, done.stderr
    assert "keep_frac: 0.3" in done.stdout
    assert "lr:" in done.stdout


@pytest.mark.parametrize("group", ["method", "task", "model", "hardware", "experiment"])
def test_an_unknown_choice_lists_what_there_is(cli, root: Path, group):
    line = complaint(cli("src.main", f"{group}=typo"))
    assert "typo" in line
    for option in (root / "conf" / group).glob("*.yaml"):
        assert option.stem in line
    assert f"There are {len(list((root / 'conf' / group).glob('*.yaml')))}:" in line
    assert "provider" not in line  # the framework's search path helps nobody


@pytest.mark.parametrize("value", ["abc", "0", "1.5", "-0.1", "nan", "null"])
@pytest.mark.parametrize("multirun", [False, True])
def test_a_keep_frac_out_of_range_is_one_line(cli, value, multirun):
    line = complaint(cli("src.main", "method=norm", f"keep_frac={value}", *(["-m"] if multirun else [])))
    assert "keep_frac" in line
    assert value in line or value == "null"


@pytest.mark.parametrize("key", ["no_such_key=1", "task.no_such_key=1", "no_such_group=x"])
def test_an_unknown_key_is_named(cli, key):
    assert key.split("=")[0].split(".")[-1] in complaint(cli("src.main", key))


@pytest.mark.parametrize("override", ["lr=", "keep_frac", "seed=abc", "lr=-1", "batch_size=0", "epochs=-1"])
def test_a_malformed_override_is_one_line(cli, override):
    assert override.split("=")[0] in complaint(cli("src.main", override))


def test_a_broken_list_is_one_line(cli):
    assert "[1" in complaint(cli("src.main", "lr=[1"))


def test_a_run_that_fails_on_its_way_is_one_line(cli, tmp_path: Path):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    rows = [f"the film number {number} was good,{number % 2}" for number in range(40)]
    (tmp_path / "rows.csv").write_text("\n".join(["text,label", *rows]))
    words = ["model=bert_tiny", "task=csv", f"task.train_file={tmp_path}/rows.csv", "logger=none", "hardware=gpu"]
    done = cli("src.main", *words, "hardware.precision=32-true", KEEPFRAC_MULTIRUN=str(tmp_path))
    assert complaint(done).startswith("error: hardware=gpu wants 1 NVIDIA GPU(s)")
    assert "Error executing job" not in done.stdout


def test_report_of_a_missing_folder_is_one_line(cli, tmp_path: Path):
    assert "no-such-sweep" in complaint(cli("src.report", str(tmp_path / "no-such-sweep")))
