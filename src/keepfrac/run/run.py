"""One run: a resolved configuration in, a folder with results.json, model/ and metrics.csv out."""

import contextlib
import errno
import logging
import os
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from keepfrac.errors import UserError
from keepfrac.run import identity, summary
from keepfrac.run.identity import Cell
from keepfrac.run.settings import Hardware, RunSettings, check
from keepfrac.storage import delivered, hub, results
from keepfrac.storage.files import flush, locked, remove_scratch, write_atomically
from keepfrac.storage.foreign import told
from keepfrac.storage.provenance import provenance
from keepfrac.storage.redact import Redacting, redact, redact_tree
from keepfrac.training import distributed
from keepfrac.training.checkpoint_files import remove_checkpoints
from keepfrac.training.distributed import RankInfo

log = logging.getLogger(__name__)


def run(cfg: DictConfig) -> dict:
    """Runs one cell, unless it is done already, and returns its results.

    Raises:
        UserError: something the user can mend; results.json then says `failed` and why. If it is only that the
            model has no other form (export), results.json says `done`, and why under `export`.
        Held: another process is running this cell.
    """
    settings = check(cfg)
    cell, rank = identity.cell(settings), distributed.rank_info(settings.hardware.devices)
    if not rank.is_rank_zero:
        if not results.is_done(cell.folder, cell.identity, cell.code_asked):
            _execute(settings, cell, {}, rank)
        return results.read(cell.folder) or {}
    with _full_disk_in_words(), locked(cell.folder), _log_into(cell.folder):
        record = _done(cell) or _run(settings, cell, rank)
        for line in summary.lines(record, cell.folder):
            log.info("%s", line)
    _refuse_export(record, settings.export["name"])
    return record


def _done(cell: Cell) -> dict | None:
    """Returns the results of an earlier run of this cell; None: it is to be run."""
    remove_scratch(cell.folder)
    found = results.finished_run(cell.folder, cell.identity, cell.code_asked)
    if found is None:
        return None
    if lost := results.lost(cell.folder, found):
        log.warning("%s was done, but %s: it runs again", cell.folder, lost)
        return None
    remove_checkpoints(cell.folder)  # a kill may have come just before
    log.info("already done: %s", cell.folder)
    if (made_by := results.code_of(found)) not in (None, cell.code):
        log.warning("by other code (%s, now %s): rerun=changed runs it again", made_by, cell.code)
    return found


def _run(settings: RunSettings, cell: Cell, rank: RankInfo) -> dict:
    """Runs the cell from configuration to results.json, whatever the outcome is."""
    shown = redact_tree(settings.plain())
    write_atomically(cell.folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(shown)))
    fingerprints = {"code": cell.code, "data": identity.data(settings.task)[:16]}
    made = provenance(settings.seed, _overrides()) | {"fingerprints": fingerprints}
    record = {"status": "running", "error": None, "identity": cell.identity, "config": shown, "provenance": made}
    results.write(cell.folder, record)
    begin = time.monotonic()
    with _failure_recorded(cell.folder, record):
        _check_devices(settings.hardware)
        with distributed.spawn_workers(rank, _execute, settings, cell, {}):
            record |= _execute(settings, cell, made, rank)
        made["seconds"] = round(time.monotonic() - begin, 1)
        record |= {"delivered": delivered.account(cell.folder), "status": "done"}
        flush(cell.folder)  # what says "done" may not reach the disk before what it speaks of
        results.write(cell.folder, record)
        remove_checkpoints(cell.folder)  # not before: a kill in between would lose the run
        log.info("done: %s", cell.folder)
        if "error" in (export := record.get("export") or {}):
            log.warning("export=%s was not written: %s", export["form"], export["error"])
    return record


def _execute(settings: RunSettings, cell: Cell, made: dict, rank: RankInfo) -> dict:
    """Does this process's part of the work; what provenance learns goes into `made`."""
    hub.resolve_hub()
    from keepfrac.run.execution import Execution

    with distributed.process_group(rank, settings.hardware.accelerator):
        execution = Execution(settings, cell, rank)
        outcome = execution()
    made |= redact_tree(execution.made())
    return outcome


@contextlib.contextmanager
def _failure_recorded(folder: Path, record: dict) -> Iterator[None]:
    """Writes into results.json why the run failed, and ends W&B's part of it."""
    hub.resolve_hub()
    from keepfrac.tracking.wandb_run import finish_wandb

    text: str | None = "stopped"
    try:
        yield
        text = None
    except KeyboardInterrupt:
        results.write(folder, record | {"status": "failed", "error": text})
        raise
    except Exception as error:
        reported = _of_disk(error)
        text = redact(told(reported))
        with contextlib.suppress(OSError):  # a full disk: the error itself matters more
            results.write(folder, record | {"status": "failed", "error": text})
        if not isinstance(reported, UserError):
            log.error("%s", redact(traceback.format_exc()), extra={"for_file": True})
        raise
    finally:
        finish_wandb(0 if text is None else 1, None if text == "stopped" else text)


@contextlib.contextmanager
def _full_disk_in_words() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if (reported := _of_disk(error)) is error:
            raise
        raise reported from error


def _of_disk(error: Exception) -> Exception:
    """Returns a plain sentence for a disk that takes no more; any other error as it is."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return UserError(f"the disk takes no more ({error}); free space and type the same command again")
    return error


def _refuse_export(record: dict, form: str) -> None:
    """Lets a run fail that is done but for its export: to type it again would not help, which the error says.

    A sweep asks results.json alone, and counts the cell as done.
    """
    export = record.get("export") or {}
    if "error" in export and export["form"] == form:
        raise UserError(f"the run is done and scored, without export={form}: {export['error']}")


def _overrides() -> list[str]:
    """Returns the words of this one run, without what a launcher added: its argv may be another program's."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def _check_devices(hardware: Hardware) -> None:
    if hardware.accelerator != "gpu":
        return
    import torch

    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if found < hardware.devices:
        raise UserError(
            f"hardware={hardware.name} wants {hardware.devices} NVIDIA GPU(s), and torch finds {found} here:"
            " set hardware=cpu, or install a torch that knows this machine's GPU"
        )


@contextlib.contextmanager
def _log_into(folder: Path) -> Iterator[None]:
    """Writes the log into the folder's run.log, unless a launcher already sends all output there.

    Tracebacks go there alone: the terminal shows one line.
    """
    root, redacting = logging.getLogger(), Redacting()
    others = list(root.handlers)
    own = [] if os.environ.get("KEEPFRAC_JOB") else [_file_handler(folder / "run.log")]
    filters: list[tuple[logging.Handler, Any]] = [(handler, redacting) for handler in (*own, *others)]
    filters += [(handler, _is_for_terminal) for handler in others if own]
    for handler in own:
        root.addHandler(handler)
    for handler, one in filters:
        handler.addFilter(one)
    try:
        yield
    finally:
        for handler, one in filters:
            handler.removeFilter(one)
        for handler in own:
            root.removeHandler(handler)
            handler.close()


def _file_handler(path: Path) -> logging.Handler:
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    return handler


def _is_for_terminal(record: logging.LogRecord) -> bool:
    return not getattr(record, "for_file", False)
