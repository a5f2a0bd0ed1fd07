"""Sweeps on a real Slurm, of one node, private to these tests: `make test-slurm`."""

import getpass
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.slurm.cluster import Cluster, missing

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]
PATIENCE = 250  # seconds; a busy machine takes ten times as long as an idle one
ROOT = Path(__file__).resolve().parents[2]
WORDS = {"good": ("fine", "lovely", "great"), "bad": ("dull", "awful", "poor")}
SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def cluster():
    if reason := missing():
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        one = Cluster(Path(folder) / "cluster")
        try:
            one.start()
            yield one
        finally:
            one.stop()


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for split in SPLITS:
        said = [f"{word} number {n},{label}" for label in WORDS for word in WORDS[label] for n in range(12)]
        rows = [f"the {split} was {one}" for one in said]
        (folder / f"{split}.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    return folder


class Sweeps:
    """Starts sweeps on the cluster and reads what they leave."""

    def __init__(self, cluster: Cluster, data: Path, folder: Path):
        self.started: list[subprocess.Popen] = []
        self.folder = folder
        self.environment = {**cluster.environment, "KEEPFRAC_MULTIRUN": str(folder)}
        files = [f"task.{split}_file={data}/{split}.csv" for split in SPLITS]
        self.common = ["task=csv", *files, "model=bert_tiny", "logger=csv", "batch_size=8", "probe_steps=0"]

    def start(self, *arguments: str, hardware: str = "slurm_cpu") -> subprocess.Popen:
        queue = ["hydra.launcher.cpus=1", "hydra.launcher.time=5"] if hardware == "slurm_cpu" else []
        command = [sys.executable, "-m", "src.main", "-m", f"hardware={hardware}", *queue, *self.common, *arguments]
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # a shell's background job ignores Ctrl-C, and so would all that it starts
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        self.started.append(process)
        return process

    def __call__(self, *arguments: str, hardware: str = "slurm_cpu") -> tuple[int, str]:
        process = self.start(*arguments, hardware=hardware)
        output, _ = process.communicate(timeout=PATIENCE)
        return process.returncode, output

    def cells(self, name: str) -> list[Path]:
        return sorted(path.parent for path in (self.folder / name).glob("*/results.json"))

    def results(self, name: str) -> list[dict]:
        return [json.loads((cell / "results.json").read_text()) for cell in self.cells(name)]

    def wait_for(self, pattern: str, process: subprocess.Popen) -> Path:
        deadline = time.monotonic() + PATIENCE
        while not (found := list(self.folder.glob(pattern))):
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < deadline, f"no {pattern}"
            time.sleep(0.05)
        return found[0]


@pytest.fixture
def sweeps(cluster, data, tmp_path):
    one = Sweeps(cluster, data, tmp_path / "multirun")
    yield one
    for process in one.started:
        process.terminate()
        process.communicate()
    cluster("scancel", "--user", getpass.getuser())


def test_an_array_runs_every_cell_once_and_a_local_run_finds_them_done(sweeps):
    grid = ("method=nosp,norm,bkrz", "steps=4", "name=array")
    code, output = sweeps(*grid)
    assert code == 0, output
    assert "submitted 3 jobs to Slurm" in output and "[3/3] done" in output
    results = sweeps.results("array")
    assert [each["status"] for each in results] == ["done"] * 3
    assert {each["provenance"]["threads"] for each in results} == {1}
    assert {each["config"]["hardware"]["name"] for each in results} == {"slurm_cpu"}
    assert "_0_log.out" in " ".join(path.name for path in (sweeps.folder / "array/.slurm").rglob("*.out"))
    # the identity of a cell does not depend on where it runs
    code, output = sweeps(*grid, "hardware.precision=32-true", hardware="cpu")
    assert code == 0 and "everything is done" in output, output


def test_a_job_that_raises_and_one_that_is_killed_end_alone(sweeps):
    grid = ("model.hidden_act=nonsense,gelu", "steps=4,100000", "name=mishaps", "checkpoint_every=7")
    process = sweeps.start(*grid)
    checkpoint = sweeps.wait_for("mishaps/*/resume.ckpt", process)  # only the long one comes to step 7
    os.kill(process_of(checkpoint.parent), signal.SIGKILL)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "3 of 4 cells failed; the same command runs them again" in output, output
    assert "Traceback" not in output.split("last lines of its log")[0]
    results = {
        (each["config"]["model"]["hidden_act"], each["config"]["steps"]): each for each in sweeps.results("mishaps")
    }
    assert results["gelu", 4]["status"] == "done"
    for cell in (("nonsense", 4), ("nonsense", 100000)):
        assert results[cell]["status"] == "failed" and "nonsense" in results[cell]["error"]
    killed = results["gelu", 100000]
    assert killed["status"] == "failed" and killed["error"].startswith("ended before its results were written")
    assert "Slurm: FAILED" in killed["error"]


def process_of(cell: Path) -> int:
    """Returns the process that runs a cell."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_text()
            except OSError:
                continue
            if f"hydra.run.dir='{cell}'" in command:
                return int(entry.name)
    raise AssertionError(f"nothing runs {cell}")


def test_two_tasks_of_srun_are_one_run(sweeps):
    common = ("steps=6", "model.dropout=0", "model.attention_dropout=0")
    code, output = sweeps(*common, "name=two", "hardware.devices=2")
    assert code == 0, output
    code, output = sweeps(*common, "name=one", "hardware.precision=32-true", "hardware.threads=1", hardware="cpu")
    assert code == 0, output
    ((one,), (two,)) = sweeps.results("one"), sweeps.results("two")
    assert one["identity"] != two["identity"]
    assert one["scores"] == pytest.approx(two["scores"], abs=1e-5)
    weights = [load_file(sweeps.cells(name)[0] / "model/model.safetensors") for name in ("one", "two")]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-5, atol=1e-5, msg=name)


def test_a_job_whose_time_is_up_is_queued_again_and_goes_on(sweeps, cluster):
    """It hangs; to spare minutes its limit is brought forward, then Slurm's own warning takes its course."""
    process = sweeps.start("name=late", "steps=40", "checkpoint_every=5", "hydra.launcher.warning=100")
    cell = sweeps.wait_for("late/*/resume.ckpt", process).parent
    os.kill(process_of(cell), signal.SIGSTOP)
    job, elapsed = cluster("squeue", "--noheader", "--array", "--format=%i %M").split()
    cluster("scontrol", "update", f"jobid={job}", f"timelimit={int(elapsed.split(':')[0]) + 2}")
    wait_until(lambda: cluster("squeue", "--noheader", "--format=%T") == "PENDING")
    cluster("scontrol", "update", f"jobid={job}", "timelimit=10")
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output
    assert "is queued again" in output
    log = (cell / "run.log").read_text()
    assert "goes on from step" in log and log.count("done: ") == 1
    (results,) = sweeps.results("late")
    assert results["status"] == "done" and results["cost"]["steps"] == 40


def test_ctrl_c_takes_the_jobs_out_of_the_queue(sweeps, cluster):
    process = sweeps.start("name=stopped", "steps=100000")
    wait_until(lambda: cluster("squeue", "--noheader", "--format=%T") == "RUNNING")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + signal.SIGINT
    assert "cancelled the jobs in Slurm's queue" in output and "the same command continues" in output
    wait_until(lambda: not cluster("squeue", "--noheader"))


def wait_until(holds) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.2)
