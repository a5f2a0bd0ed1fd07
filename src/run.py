"""One run: a resolved configuration in, a folder with results.json, model/ and metrics.csv out."""

import contextlib
import logging
import os
import time
import traceback
from pathlib import Path

import filelock
from omegaconf import DictConfig, OmegaConf

from src import hub, identity, results
from src.errors import Held, UserError
from src.identity import Cell
from src.provenance import provenance
from src.redact import redact

log = logging.getLogger(__name__)


def run(cfg: DictConfig) -> dict:
    """Runs one cell, unless it is done already, and returns its results.

    Raises:
        UserError: something the user can mend; results.json then says `failed` and why.
        Held: another process is running this cell.
    """
    settings = identity.plain(cfg)
    cell = identity.cell(settings)
    cell.folder.mkdir(parents=True, exist_ok=True)
    with _hold(cell), _log_into(cell.folder):
        former = results.read(cell.folder)
        if former is not None and results.is_done(cell.folder, cell.identity):
            log.info("already done: %s", cell.folder)
            return former
        (cell.folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(settings)))
        record = {"status": "running", "error": None, "identity": cell.identity, "config": settings}
        record["provenance"] = provenance(settings["seed"])
        results.write(cell.folder, record)
        return _guarded(settings, cell, record)


def _guarded(settings: dict, cell: Cell, record: dict) -> dict:
    """Executes and writes the outcome, whatever it is."""
    hub.settle()
    from src.tracking import finish_wandb

    exit_code = 1
    begin = time.monotonic()
    try:
        record |= _execute(settings, cell, record["provenance"])
        record["provenance"]["seconds"] = round(time.monotonic() - begin, 1)
        record["status"], exit_code = "done", 0
        results.write(cell.folder, record)
        log.info("done: %s", cell.folder)
        return record
    except Exception as error:
        text = redact(" ".join(f"{type(error).__name__}: {error}".split()))
        with contextlib.suppress(OSError):  # a full disk: the error itself matters more
            results.write(cell.folder, record | {"status": "failed", "error": text})
        if not isinstance(error, UserError):
            log.error("%s", redact(traceback.format_exc()))
        raise
    finally:
        finish_wandb(exit_code)


def _execute(settings: dict, cell: Cell, made: dict) -> dict:
    from src.execution import Execution

    hardware = settings["hardware"]
    execution = Execution(
        settings, cell, identity.resolved_precision(hardware["accelerator"], hardware["precision"])
    )
    outcome = execution()
    made |= execution.made()
    return outcome


@contextlib.contextmanager
def _hold(cell: Cell):
    """Holds the cell's lock; a process that dies lets go of it."""
    lock = filelock.FileLock(cell.folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise Held(f"another process is running this cell: {cell.folder}") from error
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _log_into(folder: Path):
    """Writes the log into the folder's run.log, unless a launcher already sends all output there."""
    if os.environ.get("KEEPFRAC_JOB"):
        yield
        return
    handler = logging.FileHandler(folder / "run.log")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
