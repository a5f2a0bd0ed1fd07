"""Hydra's own sweeper, `hydra/sweeper=grid`, less its composition of every cell, and with no secret in its record.

Our launchers compose each cell; what was typed is in multirun.yaml.
"""

from collections.abc import Sequence
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper


class GridSweeper(BasicSweeper):
    """All combinations of the values that are given."""

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Composes every cell where the launcher does not do so before it starts one; multirun.yaml is there."""
        from keepfrac.storage.redact import redact_yaml

        assert self.config is not None
        redact_yaml(Path(self.config.hydra.sweep.dir) / "multirun.yaml")
        if not getattr(self.launcher, "composes_first", False):
            super().validate_batch_is_legal(batch)
