"""Hydra's own sweeper, `hydra/sweeper=grid`, whose record of what was typed, multirun.yaml, has no secrets."""

from collections.abc import Sequence
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper


class GridSweeper(BasicSweeper):
    """All combinations of the values that are given."""

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Composes every cell, after multirun.yaml is written and before anything else is."""
        from keepfrac.storage.redact import redact_yaml

        assert self.config is not None
        redact_yaml(Path(self.config.hydra.sweep.dir) / "multirun.yaml")
        super().validate_batch_is_legal(batch)
