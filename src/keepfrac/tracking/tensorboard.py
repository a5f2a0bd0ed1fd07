"""TensorBoard: a run's curves, and its row on the page of hyperparameters. `tensorboard --logdir multirun/<name>`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only

from keepfrac.errors import UserError

FOLDER = "tensorboard"


class TensorBoard(TensorBoardLogger):
    """The event files of one run, in `<folder>/tensorboard`.

    Args:
        folder: the run's folder.
        config: the resolved configuration; its leaves are the hyperparameters.
        resumed_at: the step from which a resumed run goes on; what a killed attempt wrote beyond it is left out.

    Raises:
        UserError: the package is not installed.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], resumed_at: int):
        try:
            purge: dict[str, Any] = {"purge_step": resumed_at + 1} if resumed_at else {}
            super().__init__(Path(folder), name=FOLDER, version="", default_hp_metric=False, **purge)
        except ModuleNotFoundError as error:
            raise UserError("logger=tensorboard needs its package: pip install tensorboard") from error
        self.settings = leaves(config)

    @rank_zero_only
    def summarise(self, figures: Mapping[str, float]) -> None:
        """Puts the run onto the page of hyperparameters, with its final figures as final/*."""
        self.log_hyperparams(self.settings, {f"final/{name}": value for name, value in figures.items()})
        self.experiment.flush()


def leaves(config: Mapping[str, Any], prefix: str = "") -> dict[str, str | int | float | bool]:
    """The leaves of a configuration by dotted key, what is null left out; lists and dates as text."""
    found: dict[str, str | int | float | bool] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= leaves(value, f"{prefix}{key}.")
        elif value is not None:
            found[f"{prefix}{key}"] = value if isinstance(value, str | int | float | bool) else str(value)
    return found
