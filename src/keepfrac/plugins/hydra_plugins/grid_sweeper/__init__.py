"""Hydra's own sweeper, `hydra/sweeper=grid`, less its composition of every cell: our launchers compose each of them."""

from collections.abc import Sequence

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper


class GridSweeper(BasicSweeper):
    """All combinations of the values that are given."""

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Composes every cell where the launcher does not do so before it starts one."""
        if not getattr(self.launcher, "composes_first", False):
            super().validate_batch_is_legal(batch)
