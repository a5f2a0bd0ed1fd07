"""Where a run's figures go: always a csv in its folder, and W&B where it is wanted."""

import logging
import netrc
import os
from pathlib import Path
from urllib.parse import urlparse

from pytorch_lightning.loggers import Logger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only

log = logging.getLogger(__name__)


class MetricsFile(Logger):
    """metrics.csv: one line `step,metric,value` per figure, appended as it is made.

    Args:
        folder: the run's folder.
        resumed_at: the step from which a resumed run goes on; lines beyond it belong to the killed attempt and go.
    """

    def __init__(self, folder: Path, resumed_at: int):
        super().__init__()
        self.path = Path(folder) / "metrics.csv"
        kept = []
        if resumed_at and self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines()[1:]
            kept = [line for line in lines if line.count(",") == 2 and int(line.split(",")[0]) <= resumed_at]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("\n".join(["step,metric,value", *kept]) + "\n", encoding="utf-8")

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return "0"

    @rank_zero_only
    def log_metrics(self, metrics: dict, step: int | None = None) -> None:
        lines = [
            f"{step or 0},{name},{float(value)!r}\n" for name, value in metrics.items() if name != "epoch"
        ]
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(lines)

    def log_hyperparams(self, params, *args, **kwargs) -> None:
        """The configuration stands in config.yaml."""


def has_wandb_key() -> bool:
    """Whether a key is configured, by WANDB_API_KEY or in ~/.netrc; asks nobody."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def wandb_logger(folder: Path, settings: dict, config: dict, run_id: str, name: str) -> Logger | None:
    """Returns the W&B logger of one run: online where a key is configured and the server answers, else offline.

    Args:
        folder: the run's folder, under which W&B keeps its files.
        settings: project and entity.
        config: the resolved configuration, logged once.
        run_id: the cell's identity, so that a resumed cell goes on in the same W&B run.
        name: shown name; the group is the sweep's name.
    """
    import wandb

    mode = os.environ.get("WANDB_MODE") or ("online" if has_wandb_key() else "offline")
    if mode in ("disabled", "dryrun"):
        return None
    os.environ.setdefault("WANDB_SILENT", "true")
    arguments = {
        "project": settings["project"],
        "entity": settings["entity"],
        "group": config["name"],
        "job_type": config["method"]["name"],
        "name": name,
        "id": run_id,
        "resume": "allow",
        "dir": str(folder),
        "config": config,
        "settings": wandb.Settings(init_timeout=20, finish_timeout=20, console="off"),
    }
    try:
        run = wandb.init(mode=mode, **arguments)
    except (wandb.errors.Error, OSError) as error:
        log.warning("W&B: %s; going on offline", str(error).splitlines()[0])
        mode = "offline"
        run = wandb.init(mode=mode, **arguments)
    if mode == "offline":
        log.info("W&B: offline; to upload later: wandb sync %s", Path(run.dir).parent)
    return WandbLogger(experiment=run)


def finish_wandb(exit_code: int) -> None:
    """Closes the W&B run, if there is one, within its time limit; without it the next run would go on in this one."""
    import sys

    if "wandb" in sys.modules and (wandb := sys.modules["wandb"]).run is not None:
        wandb.finish(exit_code=exit_code)


def summarise(loggers: list, outcome: dict) -> None:
    """Puts a run's final figures into W&B's summary, as val/*, test/*, kept/*, size/* and cost/*."""
    figures = dict(outcome["scores"])
    for part in ("kept", "size", "cost"):
        numbers = {key: value for key, value in outcome[part].items() if isinstance(value, int | float)}
        figures |= {f"{part}/{key}": value for key, value in numbers.items()}
    for logger in loggers:
        if hasattr(getattr(logger, "experiment", None), "summary"):
            logger.experiment.summary.update(figures)
