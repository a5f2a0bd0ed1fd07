"""`late` on a network that the blocks do not know: linears choose rows, all else is stored as autograd saves it.

    linears     of the layers of a family of the table, else of the whole network but its head: see `any_linear`
    bits        nn.Dropout saves its mask, nn.ReLU what is positive, one bit per number, exactly; a ReLU called as a
                function saves its output in 8 bits, and where that comes to 0 no gradient passes
    all else    what autograd saves in the encoder, in 8 bits: see `saved`

Every module of the network runs its own code, so hooks, gates, masks and attention of any kind fit. It costs more time
and bytes than the blocks, which regenerate what is saved here.
"""

import logging
from collections.abc import Sequence
from typing import Any

from torch import nn

from keepfrac.errors import UserError
from keepfrac.models.anatomy import anatomy, base_path, head_of
from keepfrac.models.families import FAMILIES, PRUNED, Family
from keepfrac.sparse.act8bit.any_linear import LateLinear, LinearState
from keepfrac.sparse.act8bit.calls import RowStats, SeedCounter
from keepfrac.sparse.act8bit.saved import SavedTensors
from keepfrac.sparse.act8bit.settings import Act8bitSettings
from keepfrac.sparse.context import Context
from keepfrac.sparse.kernels import prepare
from keepfrac.sparse.layers.activation import PackedReLU
from keepfrac.sparse.layers.dropout import PackedDropout
from keepfrac.sparse.protocol import Handle
from keepfrac.sparse.selection.selectors import Selector
from keepfrac.sparse.selection.site import Site
from keepfrac.tensors.change_class import change_class

log = logging.getLogger(__name__)

WAY = "any network"


class ConvertedLinears(Handle):
    """The handle of a network whose linears choose rows.

    Args:
        linears: path -> converted linear, first to last.
        settings: how they store and choose.
        saved: what stores all else.
        undo: for `restore`.
    """

    def __init__(
        self, linears: dict[str, LateLinear], settings: Act8bitSettings, saved: SavedTensors, undo: list[Any]
    ) -> None:
        super().__init__(undo)
        self.linears, self.settings, self.saved = linears, settings, saved

    @property
    def runs_on(self) -> str:
        """What `kernels` comes to where the network is now: cpp, triton or torch."""
        return prepare(self.settings.kernels, next(iter(self.linears.values())).weight.device)

    def report(self) -> list[dict[str, Any]]:
        """Returns one row per linear, and one for all else, as `Converted.report` does.

        Bytes are those of the last forward pass; a tensor that several operations save counts once, where it is saved
        first. Masks of one bit are not among them.
        """
        rest = RowStats(saved_bytes=self.saved.bytes_kept, dense_bytes=self.saved.bytes_dense)
        own, stats = self.settings, {**self._stats(), "all else": rest}
        return [one.row(path, self.runs_on, own.store, own.keep_frac) for path, one in stats.items()]

    def kept(self) -> dict[str, Any]:
        """Returns asked and achieved share of the rows of weight gradients, over all linears and steps so far."""
        stats = self._stats().values()
        total = RowStats(sum(one.real_rows for one in stats), sum(one.used_rows for one in stats))
        return {
            "asked": self.settings.keep_frac,
            "achieved": total.share,
            "unit": "rows of weight gradients",
            "of": f"real tokens, in {len(self.linears)} linears",
            "fallbacks": 0,
            "how": WAY,
        }

    def state(self) -> dict[str, Any]:
        """Returns what regenerates the choices from here on, and the rows counted so far, as plain values."""
        rows = [(one.real_rows, one.used_rows) for one in self._stats().values()]
        seeds = [linear.late.seeds for linear in self.linears.values()]
        return {"rng": {"seed": seeds[0].seed, "calls": [one.calls for one in seeds]}, "rows": rows}

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes on from `state()` of an earlier process.

        Raises:
            UserError: it is of a network with another number of linears.
        """
        calls = state["rng"]["calls"]
        if len(calls) != len(self.linears):
            raise UserError(f"the random state is of {len(calls)} linears, the network has {len(self.linears)}")
        for linear, count, counted in zip(self.linears.values(), calls, state["rows"], strict=True):
            linear.late.seeds.seed, linear.late.seeds.calls = int(state["rng"]["seed"]), int(count)
            linear.late.stats.real_rows, linear.late.stats.used_rows = counted

    def _stats(self) -> dict[str, RowStats]:
        return {path: linear.late.stats for path, linear in self.linears.items()}


def _row_of(net: Any) -> Family | None:
    model_type = getattr(getattr(net, "config", None), "model_type", None)
    return FAMILIES.get(str(model_type).removeprefix(PRUNED))


def has_blocks(net: nn.Module) -> bool:
    """Returns whether the blocks of `late` compute what the layers of its family do."""
    row = _row_of(net)
    return row is not None and row.attention_interface


def _parts(net: nn.Module) -> tuple[str, ...]:
    """Paths of the modules whose linears choose rows: the layers, or the whole network but its head."""
    if _row_of(net) is not None:
        return tuple(layer.path for layer in anatomy(net).layers)
    head = head_of(net)
    return tuple(name for name, _ in net.named_children() if name not in head)


def _modules(net: nn.Module, kind: type, parts: Sequence[str]) -> dict[str, Any]:
    """Path -> module, of exactly this class, at or inside the parts."""
    inside = tuple(f"{part}." if part else "" for part in parts)
    return {path: one for path, one in net.named_modules() if type(one) is kind and f"{path}.".startswith(inside)}


def _check(own: Act8bitSettings) -> None:
    for key, value, least in (("store", own.store, ("8bit", "bf16", "exact")), ("context", own.context, ("save",))):
        if value not in least:
            raise UserError(
                f"{key}={value}: late has no blocks for this network, and stores what autograd saves in it"
                f" ({' or '.join(f'{key}={one}' for one in least)})"
            )


def convert_any(net: nn.Module, own: Act8bitSettings, undo: Sequence[Any] = ()) -> ConvertedLinears:
    """Makes the linears of `net` choose rows, and stores what autograd saves beside, in place.

    Args:
        net: any network with modules of class nn.Linear.
        own: how it stores and chooses.
        undo: with a method `remove`, for `restore`.

    Raises:
        UserError: no such linear, a setting that is for the blocks, or kernels that cannot be built here.
    """
    _check(own)
    found = _modules(net, nn.Linear, _parts(net))
    if not found:
        raise UserError(f"method late chooses rows of nn.Linear's gradients: a {type(net).__name__} has none inside")
    prepare(own.kernels, next(net.parameters()).device)
    base = net.get_submodule(base_path(net))
    saved, context = SavedTensors(net, base, own), Context(own.selection_seed)
    undone = [one.remove for one in (*undo, *saved.hooks, context.attach(net))]
    for number, linear in enumerate(found.values()):
        state = LinearState(own, SeedCounter(own.selection_seed, number), saved, context)
        undone.append(change_class(linear, LateLinear, late=state).undo)
    for kind, packed, given in ((nn.Dropout, PackedDropout, {}), (nn.ReLU, PackedReLU, {"behind": None})):
        for path, module in _modules(net, kind, (base_path(net),)).items():
            site = Site(path, kind.__name__, Selector(1.0), context, number=0)
            undone.append(change_class(module, packed, site=site, **given).undo)
    log.info("method late: %s, %d linears, kernels=%s", WAY, len(found), own.kernels)
    return ConvertedLinears(found, own, saved, undone)
