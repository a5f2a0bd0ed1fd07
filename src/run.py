"""One run: a resolved configuration in, a folder with results.json, model/ and metrics.csv out."""

import contextlib
import copy
import logging
import os
import platform
import subprocess
import sys
import time
import traceback
import warnings
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import filelock
from omegaconf import DictConfig, OmegaConf

from src import hub, identity, results
from src.errors import Held, UserError
from src.identity import Cell, build
from src.redact import redact

log = logging.getLogger(__name__)

VERSIONS = ("torch", "pytorch-lightning", "transformers", "datasets", "hydra-core", "torchmetrics", "wandb")
ROOT = Path(__file__).resolve().parents[1]


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
        record["provenance"] = provenance(settings)
        results.write(cell.folder, record)
        return _guarded(settings, cell, record)


def _guarded(settings: dict, cell: Cell, record: dict) -> dict:
    from src.tracking import finish_wandb

    exit_code = 1
    try:
        begin = time.monotonic()
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


def provenance(settings: dict) -> dict:
    """Returns where, when, by which code and by which command this run is made; no secrets, no host name."""
    return {
        **_git(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in VERSIONS}},
        "argv": [redact(argument) for argument in sys.argv[1:]],
        "command": redact(command()),
        "seed": settings["seed"],
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": None,
    }


def command() -> str:
    """Returns the command line that makes this run again."""
    own = [argument for argument in sys.argv[1:] if not argument.startswith("hydra") and argument != "-m"]
    return " ".join(["python -m src.main", *own])


def _git() -> dict:
    def ask(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        return {
            "git_sha": ask("rev-parse", "HEAD") or None,
            "git_dirty": bool(ask("status", "--porcelain", "-uno")),
        }
    except OSError:
        return {"git_sha": None, "git_dirty": None}


def _execute(settings: dict, cell: Cell, made: dict) -> dict:
    """Builds, fits, finishes, measures and scores; returns the parts of results.json that come of it."""
    hub.settle()
    _quieten()
    import pytorch_lightning as pl
    import torch

    from src.models.load import load_net, load_tokenizer, reload, save_model
    from src.resume import CHECKPOINT, Checkpoints, Progress

    hardware = settings["hardware"]
    if hardware["threads"]:
        torch.set_num_threads(hardware["threads"])
    precision = identity.resolved_precision(hardware["accelerator"], hardware["precision"])
    log.info(
        "%s: %s, precision %s, %d threads", cell.label, hardware["name"], precision, torch.get_num_threads()
    )

    pl.seed_everything(settings["seed"], workers=True, verbose=False)
    tokenizer = load_tokenizer(settings["model"])
    task = build_task(settings)
    task.use(tokenizer)
    task.setup()
    net = load_net(settings["model"], task.head, task.labels, task.num_labels, len(tokenizer))
    dense = copy.deepcopy(net) if settings["probe_steps"] and settings["epochs"] else None
    total = total_steps(settings, task)
    module = build_module(settings, net, task, total)

    monitor = f"val/{task.best_metric}"
    keeper = Checkpoints(cell.folder, settings["checkpoint_every"], monitor, task.direction)
    progress = Progress(cell.folder / "progress.json", total, monitor)
    resume = cell.folder / CHECKPOINT
    resumed_at = _resumed_at(resume) if total else 0
    loggers = build_loggers(settings, cell, resumed_at)
    trainer = build_trainer(settings, precision, total, loggers, [keeper, progress])

    train_seconds = 0.0
    if total:
        if resumed_at:
            log.info("goes on from step %d", resumed_at)
        begin = time.monotonic()
        try:
            trainer.fit(module, datamodule=task, ckpt_path=resume if resumed_at else None, weights_only=True)
        except SystemExit as stop:  # Lightning's answer to Ctrl-C
            raise KeyboardInterrupt from stop
        train_seconds = time.monotonic() - begin
        keeper.load_best(module.net)
    progress.tell("measure", total)
    costs = _cost(settings, task, module, dense, precision) if dense is not None else {}
    module.finish(task.training_batches())
    save_model(module.net, tokenizer, cell.folder / "model")

    progress.tell("evaluate", total)
    begin = time.monotonic()
    kept = module.kept()
    module.net = delivered = reload(cell.folder / "model", task.head, settings["model"]["attention"])
    scores = {**trainer.validate(module, datamodule=task, verbose=False)[0]}
    scores |= trainer.test(module, datamodule=task, verbose=False)[0]
    eval_seconds = time.monotonic() - begin
    if total:
        keeper.remove()
    from src import measure

    size = {
        **measure.size(delivered, cell.folder / "model"),
        "params_dense": measure.parameters(dense or delivered),
    }
    made |= {"device": device_name(hardware), "precision": precision, "threads": torch.get_num_threads()}
    made["data"] = task.describe()
    costs |= {
        "train_seconds": round(train_seconds, 1),
        "eval_seconds": round(eval_seconds, 1),
        "steps": total,
    }
    costs["best_step"] = keeper.best_step
    outcome = {
        "best_metric": task.best_metric,
        "direction": task.direction,
        "scores": {key: value for key, value in scores.items() if key.startswith(("val/", "test/"))},
        "kept": kept,
        "size": size,
        "cost": costs,
    }
    _summarise(loggers, outcome)
    return outcome


def build_task(settings: dict):
    """Builds the task with the batch size of one process and one accumulated batch."""
    share = settings["batch_size"] // (settings["accumulate"] * settings["hardware"]["devices"])
    return build(settings["task"] | {"batch_size": share})


def total_steps(settings: dict, task) -> int:
    """Returns the optimizer steps of the whole fit."""
    if not settings["epochs"]:
        return 0
    if settings["steps"]:
        return settings["steps"]
    batches = task.batches_per_epoch(settings["hardware"]["devices"])
    return settings["epochs"] * -(-batches // settings["accumulate"])


def build_module(settings: dict, net, task, total: int):
    """Builds the method's LightningModule."""
    from src.finetune import Loop

    keys = ("lr", "weight_decay", "warmup", "clip")
    loop = Loop(**{key: settings[key] for key in keys}, total_steps=total)
    return build(settings["method"], net=net, task=task, loop=loop)


def build_loggers(settings: dict, cell: Cell, resumed_at: int) -> list:
    """Returns the loggers: metrics.csv always, and the one that was asked for."""
    from src import tracking

    loggers: list = [tracking.MetricsFile(cell.folder, resumed_at)]
    if settings["logger"]["name"] == "wandb":
        logger = tracking.wandb_logger(cell.folder, settings["logger"], settings, cell.identity, cell.label)
        loggers += [logger] if logger else []
    return loggers


def build_trainer(settings: dict, precision: str, total: int, loggers: list, callbacks: list):
    """Builds the Trainer of one run."""
    import pytorch_lightning as pl
    from pytorch_lightning.callbacks import RichProgressBar

    hardware = settings["hardware"]
    watched = sys.stdout.isatty() and not os.environ.get("KEEPFRAC_JOB")
    every = settings["eval_every"]
    when = (
        {"val_check_interval": every * settings["accumulate"], "check_val_every_n_epoch": None}
        if every
        else {}
    )
    return pl.Trainer(
        accelerator=hardware["accelerator"],
        devices=hardware["devices"],
        strategy=hardware["strategy"],
        precision=precision,  # type: ignore[arg-type]
        max_epochs=-1 if settings["steps"] else settings["epochs"],
        max_steps=total if settings["steps"] else -1,
        accumulate_grad_batches=settings["accumulate"],
        logger=loggers,
        callbacks=[*callbacks, *([RichProgressBar()] if watched else [])],
        enable_progress_bar=watched,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        log_every_n_steps=10,
        use_distributed_sampler=False,
        default_root_dir=None,
        **when,
    )


def _resumed_at(checkpoint: Path) -> int:
    """Returns the step at which a resume checkpoint was made; 0 where there is none that can be read."""
    import torch

    try:
        return torch.load(checkpoint, weights_only=True, map_location="cpu")["global_step"]
    except FileNotFoundError:
        return 0
    except Exception as error:  # noqa: BLE001 - any damage: torch raises many kinds
        log.warning("%s cannot be read (%s); the run begins anew", checkpoint, type(error).__name__)
        checkpoint.unlink(missing_ok=True)
        return 0


def _cost(settings: dict, task, module, dense, precision: str) -> dict:
    """Measures a step on the first rows of the validation split, padded to their longest."""
    from src import measure

    device = next(module.net.parameters()).device
    batch = {name: tensor.to(device) for name, tensor in task.probe_batch(settings["batch_size"]).items()}
    times = settings["probe_steps"]
    rows, length = batch["input_ids"].shape
    figures = measure.cost(
        module.net,
        dense.to(device),
        lambda: sum(module.loss_terms(batch)[0].values()),
        lambda: task.loss(dense(**task.inputs(batch)), batch),
        times=times,
        precision=precision,
    )
    real = int(batch["attention_mask"].sum())
    probe = f"{rows} x {length} tokens ({real} real), {precision}, forward and backward, median of {times} interleaved"
    return {**figures, "probe": probe}


def _summarise(loggers: list, outcome: dict) -> None:
    """Puts the final figures into the loggers under their documented names."""
    figures = {f"final/{name}": value for name, value in outcome["scores"].items()}
    for part in ("kept", "size", "cost"):
        numbers = {key: value for key, value in outcome[part].items() if isinstance(value, int | float)}
        figures |= {f"{part}/{key}": value for key, value in numbers.items()}
    for logger in loggers:
        if hasattr(getattr(logger, "experiment", None), "summary"):
            logger.experiment.summary.update(figures)


def device_name(hardware: dict) -> str:
    """Returns the name of the GPU, or of the CPU with its number of cores."""
    import torch

    if hardware["accelerator"] == "gpu":
        return torch.cuda.get_device_name()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.split(':', 1)[1].strip()}, {os.cpu_count()} cores"
    return f"{platform.machine()} CPU, {os.cpu_count()} cores"


def _quieten() -> None:
    """Silences what libraries say on every run and no user can act on."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning.fabric", "httpx", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    warnings.filterwarnings("ignore", module="lightning_fabric")
    from src.models.load import quieten

    quieten()
