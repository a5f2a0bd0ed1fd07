"""Where a run's figures go: always a csv in its folder, and W&B where it is wanted.

Names, in metrics.csv and in W&B: train/* and loss/* by step, val/* and test/* (the last ones are the delivered
model's), kept/*, fidelity/*, and in W&B's summary also size/*, cost/*, failed (0 or 1) and error. W&B's own step is the
optimizer's; a figure that comes twice at one step (an epoch's, then the delivered model's) begins the next row.
val/score and test/score, in the summary, are the task's best_metric, so that one workspace serves every task.
cost/latency_seconds and cost/latency_seconds_dense are inference: one forward pass of the delivered and of the dense
model, batch 1 and length 128, median.
"""

import contextlib
import logging
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from keepfrac.storage.files import write_atomically
from keepfrac.storage.redact import first_line, redact_all, redact_tree
from keepfrac.tracking import sync
from keepfrac.tracking.tensorboard import TensorBoard

log = logging.getLogger(__name__)


HEADER = "step,metric,value"


class MetricsFile(Logger):
    """metrics.csv: one line `step,metric,value` per figure, appended as it is made.

    Args:
        folder: the run's folder.
        resumed_at: the step from which a resumed run goes on; lines beyond it belong to the killed attempt and go, and
            lines that are no figures are set aside.
    """

    def __init__(self, folder: Path, resumed_at: int):
        super().__init__()
        self.path = Path(folder) / "metrics.csv"
        kept = self._taken_over(resumed_at) if resumed_at and self.path.exists() else []
        write_atomically(self.path, "\n".join([HEADER, *kept]) + "\n")

    def _taken_over(self, resumed_at: int) -> list[str]:
        """Returns the lines of the steps before `resumed_at`."""
        text = self.path.read_text(encoding="utf-8", errors="replace")
        whole = text[: text.rfind("\n") + 1].splitlines()  # a kill may have torn the last one
        steps = {line: _step(line) for line in whole if line not in (HEADER, "")}
        if foreign := [line for line, step in steps.items() if step is None]:
            aside = self.path.with_name("metrics.foreign.txt")
            write_atomically(aside, "\n".join(foreign) + "\n")
            log.warning("%s: lines without step,metric,value set aside in %s: %d", self.path, aside.name, len(foreign))
        return [line for line in whole if (step := steps.get(line)) is not None and step < resumed_at]

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return "0"

    @rank_zero_only
    def log_metrics(self, metrics: dict, step: int | None = None) -> None:
        lines = [f"{step or 0},{name},{float(value)!r}\n" for name, value in metrics.items() if name != "epoch"]
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(lines)

    def log_hyperparams(self, params, *args, **kwargs) -> None:
        """The configuration stands in config.yaml."""


def _step(line: str) -> int | None:
    """Returns the step of a line of metrics.csv; None: it is none."""
    try:
        step, name, value = line.split(",")
        float(value)
        return int(step) if name else None
    except ValueError:
        return None


class Stream(Logger):
    """One W&B run. Whatever W&B does, training goes on; the first failure is said, and metrics.csv has it all.

    Args:
        run: what wandb.init returned.
        folder: the folder of our run.
        arguments: what wandb.init was called with.
        online: whether it is sent while it is written.
    """

    def __init__(self, run: Any, folder: Path, arguments: dict, online: bool):
        super().__init__()
        self.run, self.folder, self.arguments, self.online = run, Path(folder), arguments, online
        self.final: dict[str, Any] = {}
        self.failure: Exception | None = None
        self._row, self._names = 0, set[str]()

    @property
    def name(self) -> str:
        return "wandb"

    @property
    def version(self) -> str:
        return self.run.id

    def log_hyperparams(self, params, *args, **kwargs) -> None:
        """The resolved configuration was logged at the start."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        row = {name: float(value) for name, value in metrics.items() if name != "epoch"}
        at = max(step or 0, self._row)
        if at == self._row and self._names & row.keys():
            at += 1
        self._names = (self._names if at == self._row else set()) | row.keys()
        self._row = at
        if at >= self.run.starting_step:  # below: a killed attempt has sent it already
            self._try(lambda: self.run.log(row, step=at))

    def replay(self) -> None:
        """Logs what metrics.csv holds: what a killed attempt did not send, or had only offline."""
        lines = (self.folder / "metrics.csv").read_text(encoding="utf-8").splitlines()[1:]
        for step, name, value in (line.split(",") for line in lines):
            self.log_metrics({name: float(value)}, int(step))

    def summarise(self, figures: Mapping[str, Any]) -> None:
        """Sets final figures."""
        self.final |= figures
        self._try(lambda: self.run.summary.update(dict(figures)))

    def close(self, exit_code: int, error: str | None) -> None:
        """Ends the run, within its time limit."""
        self.summarise({"failed": int(exit_code != 0), "error": error})
        self._try(lambda: self.run.finish(exit_code=exit_code))
        if self.failure is None and self.online:
            sync.mark_sent(Path(self.run.dir).parent)
        # out of time, the client has it all on disk; out of order, it has not
        if self.failure is not None and not isinstance(self.failure, TimeoutError):
            self._write_again(exit_code)

    def _write_again(self, exit_code: int) -> None:
        again, _ = _start("offline", self.folder, self.arguments)
        if again is not None:
            again.replay()
            again.summarise(self.final)
            again._try(lambda: again.run.finish(exit_code=exit_code))

    def _try(self, do: Callable[[], object]) -> None:
        try:
            do()
        except Exception as failure:  # noqa: BLE001 - no failure of W&B's may end a run
            if self.failure is None:
                later = sync.command(self.folder.parent)
                log.warning("W&B: %s; nothing is lost; to upload later: %s", first_line(failure).rstrip("."), later)
            self.failure = self.failure or failure


_open: list[Stream] = []


def wandb_logger(
    folder: Path, settings: dict, config: dict, run_id: str, name: str, resumed_at: int = 0
) -> Stream | None:
    """Returns the W&B logger of one run: online where a key is configured and the server answers, else offline.

    Args:
        folder: the run's folder, under which W&B keeps its files.
        settings: project and entity.
        config: the resolved configuration, logged once.
        run_id: the cell's identity, with which the id of the W&B run begins. A run that begins anew is a new one in
            W&B, so that it never mixes with what an earlier one left there.
        name: shown name; the group is the sweep's name.
        resumed_at: the step from which a resumed run goes on, in the W&B run of the attempt before.
    """
    mode, reason = sync.decide()
    if mode == "disabled":
        return None
    arguments = {
        "project": settings["project"],
        "entity": settings["entity"],
        "group": config["name"],
        "job_type": config["method"]["name"],
        "tags": [config["task"]["name"], config["model"]["name"]],
        "name": name,
        "id": _id(folder, run_id, resumed_at),
        "resume": "allow" if resumed_at else None,
        "dir": str(folder),
        "config": config,
    }
    arguments |= {key: redact_tree(arguments[key]) for key in ("group", "job_type", "tags", "name", "config")}
    stream = None
    if mode == "online":
        stream, reason = _start(mode, folder, arguments)
    if stream is None:
        stream, failure = _start("offline", folder, arguments)
        told = f"offline ({reason}); to upload later: {sync.command(folder.parent)}"
        log.warning("W&B: %s", told if stream else f"nothing is written ({failure}); metrics.csv has it all")
    if stream is not None:
        _open.append(stream)
        if resumed_at:
            stream.replay()
    return stream


def _id(folder: Path, run_id: str, resumed_at: int) -> str:
    former = [path.name.partition("run-")[2].partition("-")[2] for path in sync.attempts(folder)]
    return former[-1] if resumed_at and former else f"{run_id}-{secrets.token_hex(2)}"


def _start(mode: str, folder: Path, arguments: dict) -> tuple[Stream | None, str]:
    """Returns the run, or None and what was wrong."""
    os.environ.setdefault("WANDB_SILENT", "true")
    former = set(sync.attempts(folder))
    try:
        import wandb

        if mode == "offline":
            with contextlib.suppress(Exception):
                wandb.teardown(exit_code=1)  # of a client that failed: it would hold the run's id
        limits = {"init_timeout": 20, "finish_timeout": 10}
        limits = {name: n for name, n in limits.items() if f"WANDB_{name.upper()}" not in os.environ}
        # git's remote address may hold a token; the commit stands in results.json
        options = wandb.Settings(console="off", disable_git=True, finish_timeout_raises=True, **limits)
        with _redacted_argv():
            run = wandb.init(mode=mode, reinit="finish_previous", settings=options, **arguments)
        if mode == "online":
            log.info("W&B: %s", run.url)
        return Stream(run, folder, arguments, mode == "online"), ""
    except Exception as error:  # noqa: BLE001 - no failure of W&B's may end a run
        for stillborn in set(sync.attempts(folder)) - former:
            shutil.rmtree(stillborn, ignore_errors=True)
        return None, first_line(error).rstrip(".")


@contextlib.contextmanager
def _redacted_argv() -> Iterator[None]:
    """The client writes the words of the command down."""
    typed = sys.argv
    sys.argv = redact_all(typed)
    try:
        yield
    finally:
        sys.argv = typed


def finish_wandb(exit_code: int, error: str | None = None) -> None:
    """Closes the W&B run, if there is one; without it the next run in this process would go on in this one.

    Args:
        exit_code: 0 or what went wrong.
        error: one line, without secrets.
    """
    while _open:
        _open.pop().close(exit_code, error)


def final_figures(outcome: dict) -> dict[str, float]:
    """Returns the final figures of a run under their documented names."""
    scores, best = outcome["scores"], outcome["best_metric"]
    figures = scores | {f"{split}/score": scores[f"{split}/{best}"] for split in ("val", "test")}
    for part in ("kept", "size", "cost"):
        numbers = {key: value for key, value in outcome[part].items() if isinstance(value, int | float)}
        figures |= {f"{part}/{key}": value for key, value in numbers.items()}
    return figures


def summarise(loggers: list, outcome: dict) -> None:
    """Puts the final figures into W&B's summary, and onto TensorBoard's page of hyperparameters."""
    for logger in loggers:
        if isinstance(logger, Stream | TensorBoard):
            logger.summarise(final_figures(outcome))
