"""Each way in which W&B can be out of reach, provoked on real runs of the command line, as a markdown table.

    python -m tests.bench.outages [WORDS ...]      only the outages whose name holds one of the words

The server is the tests' stand-in on loopback, the client is the real one. Seconds are those that the run spends at
W&B's beginning and end, against the first row, where the server answers.
"""

import dataclasses
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.integration.conftest import sentences
from tests.standin_wandb import StandIn

ROOT = Path(__file__).resolve().parents[2]

TIMED = """
import sys, time
from src import main, tracking
def timed(do):
    def wrapped(*arguments):
        begun = time.monotonic()
        try:
            return do(*arguments)
        finally:
            print(f"SECONDS {time.monotonic() - begun:.1f}", flush=True)
    return wrapped
tracking.wandb_logger, tracking.finish_wandb = timed(tracking.wandb_logger), timed(tracking.finish_wandb)
sys.exit(main.main())
"""


@dataclasses.dataclass(frozen=True)
class Outage:
    """What happens.

    Args:
        name: shown.
        strike: called before the run.
        while_running: called again and again; true: it has struck.
        environment: of the run, beside the stand-in's.
        words: of the command line.
    """

    name: str
    strike: Callable[[StandIn], object] = lambda server: None
    while_running: Callable[[StandIn], bool] = lambda server: True
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    words: tuple[str, ...] = ()


def dies_after_rows(server: StandIn) -> bool:
    if not any(run.rows for run in server.runs.values()):
        return False
    server.stop()
    return True


def dies_after_start(server: StandIn) -> bool:
    if not server.runs:
        return False
    server.stop()
    return True


SWEEP = ("-m", "method=nosp,norm", "seed=0,1", "hydra.launcher.n_jobs=2")
OUTAGES = (
    Outage("none"),
    Outage("no server at the start", strike=StandIn.stop),
    Outage("the server hangs at the start", strike=lambda server: server.hangs.set()),
    Outage("a wrong key", environment={"WANDB_API_KEY": "local-" + "f" * 48}),
    Outage("no key, no terminal", environment={"WANDB_API_KEY": ""}),
    Outage("no right to the project", strike=lambda server: setattr(server, "forbids", True)),
    Outage("the server dies before the first rows", while_running=dies_after_start),
    Outage("the server dies between rows", while_running=dies_after_rows, words=("steps=2500", "eval_every=1000")),
    Outage("the server hangs, a sweep of 4", strike=lambda server: server.hangs.set(), words=SWEEP),
)


def base(folder: Path) -> list[str]:
    for name, count, seed in (("train", 96, 0), ("validation", 32, 1), ("test", 32, 2)):
        lines = ["text,label", *(f"{text},{label}" for text, label in sentences(count, seed))]
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    files = [f"task.{name}_file={folder}/{name}.csv" for name in ("train", "validation", "test")]
    fixed = "model=bert_tiny task=csv epochs=1 batch_size=8 probe_steps=1 name=sweep logger=wandb"
    return [*fixed.split(), *files, "hardware.precision=32-true", "hardware.threads=1"]


def provoke(outage: Outage, words: list[str], multirun: Path) -> str:
    """Returns a row of the table."""
    with StandIn() as server:
        online = server.environment()
        offline = {"HF_HUB_OFFLINE": "1", "KEEPFRAC_MULTIRUN": str(multirun), "NETRC": str(multirun / "netrc")}
        environment = os.environ | online | offline | outage.environment
        outage.strike(server)
        program = ["-m", "src.main"] if "-m" in outage.words else ["-c", TIMED]
        command = [sys.executable, *program, *outage.words, *words]
        done = running(command, environment, lambda: outage.while_running(server))
        seen = [line for line in done.stdout.splitlines() if "W&B" in line]
        spent = sum(float(each) for each in re.findall(r"SECONDS ([\d.]+)", done.stdout))
        server.forbids = False
        server.start()
        sync = [sys.executable, "-m", "src.sync", str(multirun)]
        synced = subprocess.run(sync, cwd=ROOT, env=environment | online, capture_output=True, text=True)
        whole = [same(multirun, run) for run in server.runs.values()]
    last = synced.stdout.splitlines()[-1].replace(str(multirun), "multirun") if synced.returncode else "yes"
    saw = seen[-1].replace(str(multirun), "multirun") if seen else done.stderr[-200:]
    saw = saw.replace("`", "'")
    saw = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:8080", saw)
    seconds = f"{spent:.1f}" if program[0] == "-c" else "not timed"
    return f"| {outage.name} | {done.returncode} | `{saw}` | {seconds} | {last}, {sum(whole)} of {len(whole)} whole |"


def running(command: list[str], environment: dict, strike: Callable[[], bool]) -> subprocess.CompletedProcess:
    with tempfile.TemporaryFile("w+") as output:
        options = {"cwd": ROOT, "env": environment, "stdin": subprocess.DEVNULL, "stdout": output}
        process = subprocess.Popen(command, stderr=subprocess.STDOUT, **options)
        while process.poll() is None and not strike():
            time.sleep(0.05)
        code = process.wait(timeout=600)
        output.seek(0)
        text = output.read()
    return subprocess.CompletedProcess(command, code, text, text)


def same(multirun: Path, run) -> bool:
    """Whether the server has every figure of metrics.csv, and the end of the run."""
    (folder,) = (path.parents[1] for path in multirun.glob(f"*/*/wandb/*run-*-{run.id}"))
    lines = (line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()[1:])
    wanted = sorted((name, float(value)) for _, name, value in lines)
    found = sorted((name, value) for row in run.history for name, value in row.items() if name[0] != "_")
    return wanted == found and run.exit_code == 0


def main() -> None:
    print("| outage | exit code of the run | what the user saw | seconds at W&B | uploaded afterwards |")
    print("| :-- | --: | :-- | --: | :-- |")
    for outage in OUTAGES:
        if not sys.argv[1:] or any(word in outage.name for word in sys.argv[1:]):
            with tempfile.TemporaryDirectory() as folder:
                multirun = Path(folder) / "multirun"
                multirun.mkdir()
                print(provoke(outage, base(Path(folder)), multirun), flush=True)


if __name__ == "__main__":
    main()
