"""The protocol of backward savers, which save less for the backward pass. It knows torch, and no training loop.

    saver = Act8bit(Act8bit.Settings.of(yaml))
    saver.attach(net)      the network is changed in place: parameters, their names and the forward pass stay
    ...                    training
    saver.detach()         the stock modules are back, with the trained weights

While it is attached a saver holds the `Handle` of the changed network; `sparsify`, `recompute_activations` and
`act8bit.convert` give such a handle to whoever has no use for settings of a run.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from torch import nn

from keepfrac import settings as written
from keepfrac.settings import settings, share, text

EVERYTHING = {"asked": 1.0, "achieved": 1.0, "unit": None, "of": "everything"}


class Handle:
    """A network that was changed in place. Its defaults are for what leaves nothing out and has no state.

    Args:
        undo: what puts the stock modules back, to be called in reverse order.
    """

    def __init__(self, undo: list[Callable[[], None]]) -> None:
        self.undo = undo

    def restore(self) -> None:
        """Puts the stock modules back; parameters stay as they are trained."""
        while self.undo:
            self.undo.pop()()

    def report(self) -> list[dict[str, Any]]:
        """Returns one row per site, of the last forward pass: site, kind, asked, achieved, fallback and bytes."""
        return []

    def kept(self) -> dict[str, Any]:
        """Returns what was asked for, what was achieved, the unit, and of what."""
        return dict(EVERYTHING)

    def state(self) -> dict[str, Any]:
        """Returns what a resumed run needs, of plain values and tensors."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continues from `state()` of an earlier process."""


class BackwardSaver(ABC):
    """A method to save less for the backward pass.

    Args:
        settings: checked.
    """

    @settings
    class Settings(written.Settings):
        where = "backward"
        name: str = text("its name in results")
        keep_frac: float = share("share that is kept of what enters the weight gradients", "(]")

    draws_masks = False
    """Whether its dropout masks are its own, not torch's."""

    forms_attention_scores = True
    """Whether a teacher's attention scores can be distilled into a model that it is attached to."""

    def __init__(self, settings: Any) -> None:
        self.settings = settings
        self.handle: Any = None
        self._kept: dict[str, Any] = {}

    @abstractmethod
    def convert(self, net: nn.Module) -> Handle:
        """Changes `net` in place.

        Raises:
            UserError: it cannot be done with this network.
        """

    def attach(self, net: nn.Module) -> None:
        """Changes `net` in place, unless that is done; what is to be frozen is frozen before.

        Raises:
            UserError: it cannot be done with this network.
        """
        if self.handle is None:
            self.handle = self.convert(net)

    def detach(self) -> None:
        """Puts the stock modules back, if they are not in place."""
        if self.handle is not None:
            self._kept = self.figures()
            self.handle.restore()
            self.handle = None

    def figures(self) -> dict[str, Any]:
        """Returns what `kept` does, while it is attached."""
        return self.handle.kept()

    def kept(self) -> dict[str, Any]:
        """Returns asked, achieved, unit and `of`; empty before `attach`."""
        return self._kept if self.handle is None else self.figures()

    def report(self) -> list[dict[str, Any]]:
        """Returns one row per site where less is saved; empty while it is not attached."""
        return [] if self.handle is None else self.handle.report()

    def state(self) -> dict[str, Any]:
        """Returns what a resumed run needs; empty while it is not attached."""
        return {} if self.handle is None else self.handle.state()

    def load_state(self, state: dict[str, Any]) -> None:
        """Continues from `state()` of an earlier process."""
        if self.handle is not None and state:
            self.handle.load_state(state)
