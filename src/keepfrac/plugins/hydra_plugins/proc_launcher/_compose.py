"""Cells of a sweep as Hydra composes them, without its work for each: that is done once per choice of config groups."""

import functools
from collections.abc import Sequence
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig


class Composer:
    """Composes cells one after another.

    Args:
        loader: Hydra's.
        config: the sweep's own configuration, as composed for it.
    """

    def __init__(self, loader: ConfigLoaderImpl, config: DictConfig) -> None:
        self.loader, self.config = loader, config
        self._parsed = functools.cache(OverridesParser.create().parse_override)
        self._bases = functools.cache(self._compose)
        self._is_group = functools.cache(loader.repository.group_exists)

    def __call__(self, overrides: Sequence[str]) -> DictConfig:
        """Returns what Hydra's `load_sweep_config` returns; the next call may change it."""
        parsed = [self._parsed(word) for word in overrides]
        values = [each for each in parsed if self._is_value(each)]
        rest = [each for each in parsed if not self._is_value(each)]
        if any(_overlap(value, each) for value in values for each in rest if not self._is_group(each.key_or_group)):
            return self._compose(tuple(overrides))
        # cells of one base set the same keys: what one of them sets, the next one sets anew
        cell = self._bases(_words(rest), tuple(each.key_or_group for each in values))
        ConfigLoaderImpl._apply_overrides_to_config(values, cell)
        _name_overrides(cell, [each for each in parsed if not each.is_hydra_override()])
        return cell

    def _compose(self, overrides: tuple[str, ...], keys: tuple[str, ...] = ()) -> DictConfig:
        return self.loader.load_sweep_config(self.config, list(overrides))

    def _is_value(self, override: Override) -> bool:
        """Whether it gives another value to a key that is there, which nothing in the composition itself asks for."""
        return (
            override.type == OverrideType.CHANGE
            and override.package is None
            and not override.is_hydra_override()
            and not override.is_sweep_override()
            and not isinstance(override.value(), dict)  # which is merged into the present one
            and not self._is_group(override.key_or_group)
        )


def _overlap(one: Override, other: Override) -> bool:
    short, long = sorted((f"{one.key_or_group}.", f"{other.key_or_group}."), key=len)
    return long.startswith(short)


def _words(overrides: Sequence[Override]) -> tuple[str, ...]:
    return tuple(str(each.input_line) for each in overrides)


def _name_overrides(cell: DictConfig, overrides: Sequence[Override]) -> None:
    """Writes into Hydra's own part which overrides a cell has, as its loader does."""
    shown: Any = cell.hydra.job.config.override_dirname
    cell.hydra.overrides.task = list(_words(overrides))
    cell.hydra.job.override_dirname = get_overrides_dirname(
        overrides=list(overrides), kv_sep=shown.kv_sep, item_sep=shown.item_sep, exclude_keys=shown.exclude_keys
    )
