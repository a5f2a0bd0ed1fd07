"""Whole sweeps of a stand-in program (tests/fixtures/standin) with the same protocol, in processes of their own."""

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
METHODS = "method=nosp,norm"


class Standin:
    """The stand-in's folder and its command line."""

    def __init__(self, root: Path):
        self.root = root
        shutil.copytree(ROOT / "tests/fixtures/standin", root)
        left_out = shutil.ignore_patterns("run", "__pycache__")
        shutil.copytree(ROOT / "src/keepfrac", root / "src/keepfrac", ignore=left_out, dirs_exist_ok=True)
        shutil.copy(ROOT / "conf/hydra/launcher/proc.yaml", root / "conf/hydra/launcher")
        shutil.copytree(ROOT / "conf/hydra/sweeper", root / "conf/hydra/sweeper")
        self.environment = {**os.environ, "STARTS": str(root / "starts")}
        self.environment.pop("KEEPFRAC_MULTIRUN", None)

    def start(self, *arguments: str, **options) -> subprocess.Popen:
        command = [sys.executable, "-m", "src.main", *arguments]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True} | options
        return subprocess.Popen(command, cwd=self.root, env=self.environment, stdin=subprocess.DEVNULL, **options)

    def __call__(self, *arguments: str) -> tuple[int, str]:
        process = self.start(*arguments)
        output, _ = process.communicate(timeout=60)
        return process.returncode, output

    def starts(self) -> list[str]:
        path = self.root / "starts"
        return path.read_text().split() if path.exists() else []

    def processes(self) -> int:
        """How many processes of cells there were, also those that ended before they began."""
        return len((self.root / "starts.processes").read_text().split())

    def folder(self, beginning: str, name: str = "runs") -> Path:
        (found,) = (self.root / "multirun" / name).glob(f"{beginning}-*")
        return found

    def results(self, beginning: str) -> dict:
        return json.loads((self.folder(beginning) / "results.json").read_text())

    def wait_for_starts(self, number: int) -> None:
        deadline = time.monotonic() + 30
        while len(self.starts()) < number:
            assert time.monotonic() < deadline, f"only {self.starts()} started"
            time.sleep(0.05)


@pytest.fixture
def standin(tmp_path: Path) -> Standin:
    # a path that a Hydra override must quote
    return Standin(tmp_path / "it's a folder, é=1")


def test_every_cell_runs_whatever_a_job_does(standin: Standin) -> None:
    code, output = standin("-m", "do=raise,exit,kill,pretend,finish")
    assert code == 1
    assert "Traceback (most recent call last):\n  File" not in output.split("last lines of its log")[0]
    assert output.rstrip().endswith("error: 4 of 5 cells failed; the same command runs them again")
    assert "exit code 1: the stand-in fails" in output
    assert "killed by SIGKILL" in output
    assert standin.results("norm_k0.3_s0_words_finish")["status"] == "done"
    assert standin.results("norm_k0.3_s0_words_raise")["error"] == "the stand-in fails"
    # what a killed job could not write itself
    killed = standin.results("norm_k0.3_s0_words_kill")
    assert (killed["status"], killed["error"]) == ("failed", "killed by SIGKILL (out of memory?)")


def test_the_same_command_runs_only_what_is_not_done(standin: Standin) -> None:
    standin("-m", "do=raise,finish")
    (standin.folder("norm_k0.3_s0_words_raise") / "heal").touch()
    code, output = standin("-m", "do=raise,finish")
    assert code == 0
    assert "2 cells, 1 done, 1 to run" in output
    assert len(standin.starts()) == 3
    code, output = standin("-m", "do=finish,raise")  # another order
    assert code == 0
    assert "everything is done" in output
    assert len(standin.starts()) == 3


def test_a_failed_attempt_stays_in_the_log(standin: Standin) -> None:
    standin("-m", "do=raise")
    standin("-m", "do=raise")
    log = (standin.folder("norm_k0.3_s0_words_raise") / "run.log").read_text()
    assert log.count("RuntimeError: the stand-in fails") == 2


def test_a_cell_reached_twice_runs_once(standin: Standin) -> None:
    _, output = standin("-m", METHODS, "keep_frac=0.1,0.3")
    assert "3 cells, 0 done, 3 to run" in output
    assert "same as another cell, run once: 1" in output
    assert sum(name.startswith("nosp") for name in standin.starts()) == 1


def test_range_floats_are_the_same_cells_and_short_names(standin: Standin) -> None:
    standin("-m", "keep_frac=0.1,0.2,0.3")
    _, output = standin("-m", "keep_frac=range(0.1,0.35,0.1)")  # 0.30000000000000004 among them
    assert "everything is done" in output
    assert standin.folder("norm_k0.3_s0_words_finish").is_dir()


def test_nothing_starts_where_one_cell_is_illegal(standin: Standin) -> None:
    code, output = standin("-m", "keep_frac=0.1,0.2,1.5")
    assert (code, output) == (1, "error: cell keep_frac=1.5: keep_frac=1.5: must be in (0, 1]\n")
    assert standin.starts() == []


def test_cells_without_data_are_skipped_and_told_once(standin: Standin) -> None:
    code, output = standin("-m", "task=absent,words", "keep_frac=0.1,0.3")
    assert code == 0
    assert output.count("task absent needs its folder") == 1
    assert "skipped, no data: 2" in output
    assert len(standin.starts()) == 2


def test_no_data_at_all_is_an_error_that_says_what_to_type(standin: Standin) -> None:
    code, output = standin("-m", "task=absent")
    assert code == 1
    assert output.count("\n") == 1
    assert "task absent needs its folder" in output
    assert "DATA_DIR=" in output


def test_a_hardware_of_another_launcher_cannot_be_swept(standin: Standin) -> None:
    code, output = standin("-m", "hardware=cpu,two")
    assert code == 1
    assert "hydra/launcher=two" in output
    assert standin.starts() == []
    assert standin("-m", "hardware=two")[0] == 0


def test_bad_n_jobs_is_one_line(standin: Standin) -> None:
    code, output = standin("-m", "hydra.launcher.n_jobs=0")
    assert (code, output) == (1, "error: hydra.launcher.n_jobs=0: must be a whole number >= 1\n")


def test_an_experiment_may_set_the_launcher(standin: Standin) -> None:
    code, output = standin("experiment=pair")
    assert code == 0
    assert "2 at a time" in output
    assert "experiment=pair says: a blink" in output
    assert standin.folder("nosp_k1_s0_words_finish", "pair").is_dir()


def test_jobs_share_the_cores_have_no_stdin_and_show_no_key(standin: Standin) -> None:
    _, output = standin("-m", "do=kill", "hydra.launcher.n_jobs=100")
    assert "threads=1 stdin=''" in output
    assert "a" * 40 not in output
    assert "key=local-***" in output


def test_two_at_a_time(standin: Standin) -> None:
    _, output = standin("-m", "seed=1,2", "seconds=1", "hydra.launcher.n_jobs=2")
    lines = [line.split("] ")[1].split()[0] for line in output.splitlines() if line.startswith("[")]
    assert lines == ["started", "started", "done", "done"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every job is a fresh process")
@pytest.mark.parametrize("warm", [True, False])
def test_jobs_are_copies_of_one_warm_process_or_fresh_ones(standin: Standin, warm: bool) -> None:
    sweep = standin.start("-m", "do=finish,exit", f"hydra.launcher.warm={str(warm).lower()}")
    output, _ = sweep.communicate(timeout=120)
    assert "1 of 2 cells failed" in output and "exit code 3" in output
    logs = [next((standin.root / "multirun/runs").glob(f"*_{do}-*/run.log")).read_text() for do in ("finish", "exit")]
    parents = {re.search(r"parent=(\d+)", log)[1] for log in logs}
    assert len(parents) == 1 and (parents == {str(sweep.pid)}) != warm


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every job is a fresh process")
def test_without_the_warm_process_jobs_are_fresh_ones(standin: Standin) -> None:
    sweep = standin.start("-m", "seed=1,2", "seconds=2")
    standin.wait_for_starts(1)
    log = standin.folder("norm_k0.3_s1_words_finish") / "run.log"
    deadline = time.monotonic() + 30
    while "parent=" not in log.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(int(re.search(r"parent=(\d+)", log.read_text())[1]), signal.SIGKILL)
    output, _ = sweep.communicate(timeout=120)
    assert "killed by SIGKILL" in output  # its copies go with it
    assert "done    norm_k0.3_s2_words_finish" in output


def test_two_sweeps_at_once_do_no_double_work(standin: Standin) -> None:
    grid = ("-m", "seed=1,2,3", "seconds=1")
    first, second = standin.start(*grid), standin.start(*grid)
    outputs = [process.communicate(timeout=60)[0] for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), outputs
    assert sorted(standin.starts()) == sorted(set(standin.starts()))
    assert len(standin.starts()) == standin.processes() == 3
    assert any("another process" in output for output in outputs)


def test_a_held_cell_is_run_when_its_holder_dies(standin: Standin) -> None:
    holder = standin.start("seconds=100", start_new_session=True)
    standin.wait_for_starts(1)
    sweep = standin.start("-m", "seconds=0")
    waiting = "waiting for norm_k0.3_s0_words_finish: another process runs it"
    assert any(waiting in line for line in sweep.stdout)  # reads on until it says so
    holder.kill()
    holder.communicate()
    assert sweep.communicate(timeout=60) and sweep.returncode == 0
    assert len(standin.starts()) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_children_and_the_same_command_continues(standin: Standin, number: int) -> None:
    sweep = standin.start("-m", "seed=1,2", "seconds=0", "do=finish")
    sweep.communicate(timeout=60)
    sweep = standin.start("-m", "seed=1,2,3,4", "seconds=100")
    standin.wait_for_starts(3)
    sweep.send_signal(number)
    output, _ = sweep.communicate(timeout=20)
    assert sweep.returncode == 128 + number
    assert "2 cells are done; the same command continues" in output
    assert "Traceback" not in output
    assert standin("-m", "seed=3", "seconds=0")[0] == 0  # its lock is free


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_children_do_not_outlive_a_killed_launcher(standin: Standin) -> None:
    sweep = standin.start("-m", "seed=1,2", "seconds=100", "hydra.launcher.n_jobs=2")
    standin.wait_for_starts(2)
    sweep.kill()
    sweep.communicate(timeout=10)  # their pipe ends would keep it open
    code, output = standin("-m", "seed=1,2", "seconds=0")
    assert code == 0
    assert "waiting" not in output


def test_a_terminal_gets_a_live_table(standin: Standin) -> None:
    standin.environment |= {"TERM": "xterm-256color", "COLUMNS": "160"}
    controller, terminal = pty.openpty()
    sweep = standin.start("-m", "seed=1,2", "seconds=1", stdout=terminal, stderr=terminal)
    os.close(terminal)
    shown = b""
    try:
        while chunk := os.read(controller, 65536):
            shown += chunk
    except OSError:  # Linux's end of a terminal
        pass
    os.close(controller)
    assert sweep.wait(timeout=10) == 0
    text = shown.decode()
    for part in ("5/10", "0.5000", "train", "0 of 2 done, 1 running, 0 failed, 1 left", "time left: "):
        assert part in text
