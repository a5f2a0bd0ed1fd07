"""One run: a resolved configuration in, a folder with results.json, model/ and metrics.csv out."""

import contextlib
import errno
import logging
import os
import time
import traceback
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from keepfrac.errors import UserError
from keepfrac.run import identity
from keepfrac.run.identity import Cell
from keepfrac.storage import hub, results
from keepfrac.storage.files import locked
from keepfrac.storage.provenance import provenance
from keepfrac.storage.redact import redact, redact_tree
from keepfrac.training import distributed

log = logging.getLogger(__name__)


def run(cfg: DictConfig) -> dict:
    """Runs one cell, unless it is done already, and returns its results.

    Raises:
        UserError: something the user can mend; results.json then says `failed` and why. If it is only that the
            model has no other form (export), results.json says `done`, and why under `export`.
        Held: another process is running this cell.
    """
    settings = identity.plain(cfg)
    cell = identity.cell(settings)
    place = distributed.place(settings["hardware"]["devices"])
    if not place.leads:
        return _follow(settings, cell, place)
    try:
        record = _lead(settings, cell, place)
    except OSError as error:
        raise _of_disk(error) from error
    _tell_refused_export(settings, record)
    return record


def _lead(settings: dict, cell: Cell, place: distributed.Place) -> dict:
    """Runs the cell under its lock, unless it is done."""
    with locked(cell.folder), _log_into(cell.folder):
        former = results.read(cell.folder)
        if former is not None and results.is_done(cell.folder, cell.identity):
            log.info("already done: %s", cell.folder)
            _tell_scores(settings, former)
            return former
        shown = redact_tree(settings)
        (cell.folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(shown)))
        record = {"status": "running", "error": None, "identity": cell.identity, "config": shown}
        record["provenance"] = provenance(settings["seed"], _overrides())
        results.write(cell.folder, record)
        return _guarded(settings, cell, record, place)


def _follow(settings: dict, cell: Cell, place: distributed.Place) -> dict:
    """Takes part in a run of which another process holds the lock and writes the results."""
    if not results.is_done(cell.folder, cell.identity):
        hub.settle()
        _execute(settings, cell, {}, place)
    return results.read(cell.folder) or {}


def _guarded(settings: dict, cell: Cell, record: dict, place: distributed.Place) -> dict:
    """Executes and writes the outcome, whatever it is."""
    hub.settle()
    from keepfrac.tracking.wandb_run import finish_wandb
    from keepfrac.training.checkpoint import remove_checkpoints

    exit_code, text = 1, None
    begin = time.monotonic()
    try:
        _check_devices(settings["hardware"])
        with distributed.followers(place, _execute, settings, cell, {}):
            record |= _execute(settings, cell, record["provenance"], place)
        record["provenance"]["seconds"] = round(time.monotonic() - begin, 1)
        record["status"], exit_code = "done", 0
        results.write(cell.folder, record)
        remove_checkpoints(cell.folder)  # not before: a kill in between would lose the run
        log.info("done: %s", cell.folder)
        if "error" in (export := record.get("export") or {}):
            log.warning("export=%s was not written: %s", export["form"], export["error"])
        _tell_scores(settings, record)
        return record
    except KeyboardInterrupt:
        results.write(cell.folder, record | {"status": "failed", "error": "stopped"})
        raise
    except Exception as raised:  # noqa: BLE001 - re-raised below, once it is written down
        error = _of_disk(raised)
        text = redact(" ".join(f"{type(error).__name__}: {error}".split()))
        with contextlib.suppress(OSError):  # a full disk: the error itself matters more
            results.write(cell.folder, record | {"status": "failed", "error": text})
        if not isinstance(error, UserError):
            log.error("%s", redact(traceback.format_exc()))
        raise error from raised if error is not raised else None
    finally:
        finish_wandb(exit_code, text)


def _tell_scores(settings: dict, record: dict) -> None:
    """Says the scores of a run that only evaluates."""
    if not settings["epochs"]:
        log.info("%s", results.evaluation(record["scores"]))


def _tell_refused_export(settings: dict, record: dict) -> None:
    """Lets a run fail that is done but for its export: to type it again would not help, which the error says.

    A sweep asks results.json alone, and counts the cell as done.
    """
    export = record.get("export") or {}
    if "error" in export and export["form"] == settings["export"]["name"]:
        raise UserError(f"the run is done and scored, without export={export['form']}: {export['error']}")


def _overrides() -> list[str]:
    """Returns the words of this one run, without what a launcher added: its argv may be another program's."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def _of_disk(error: Exception) -> Exception:
    """Returns a plain sentence for a disk that takes no more; any other error as it is."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return UserError(f"the disk takes no more ({error}); free space and type the same command again")
    return error


def _execute(settings: dict, cell: Cell, made: dict, place: distributed.Place) -> dict:
    from keepfrac.run.execution import Execution

    hardware = settings["hardware"]
    precision = identity.resolved_precision(hardware["accelerator"], hardware["precision"])
    with distributed.joined(place, hardware["accelerator"]):
        execution = Execution(settings, cell, precision, place)
        outcome = execution()
    made |= execution.made()
    return outcome


def _check_devices(hardware: dict) -> None:
    if hardware["accelerator"] != "gpu":
        return
    import torch

    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if found < hardware["devices"]:
        raise UserError(
            f"hardware={hardware['name']} wants {hardware['devices']} NVIDIA GPU(s), and torch finds {found} here:"
            " set hardware=cpu, or install a torch that knows this machine's GPU"
        )


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
