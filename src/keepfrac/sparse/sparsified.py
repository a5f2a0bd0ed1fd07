"""The handle on a network with sites: figures for reports, state for resuming."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from keepfrac.errors import UserError
from keepfrac.sparse.context import Context
from keepfrac.sparse.protocol import Handle
from keepfrac.sparse.selection.selectors import Selector
from keepfrac.sparse.selection.site import Site

if TYPE_CHECKING:
    from keepfrac.sparse.gradient_norms import GradientNorms

# Sites that leave nothing out: one bit says all that their gradient needs.
EXACT = ("activation", "dropout")
# Sites that the attention function asks, not a module that was replaced.
ATTENTION = ("attention", "softmax")


class Sparsified(Handle):
    """The sites of a network, for reports and for resuming.

    Args:
        sites: all of them, also those that stay dense, in the order of the forward pass.
        context: shared by the sites.
        selector: what was asked.
        undo: what puts the stock modules back, to be called in reverse order.
    """

    def __init__(
        self, sites: list[Site], context: Context, selector: Selector, *, undo: list[Callable[[], None]]
    ) -> None:
        super().__init__(undo)
        self.sites, self.context, self.selector = sites, context, selector
        self.norms: GradientNorms | None = None  # by which the sites choose too

    def report(self) -> list[dict[str, Any]]:
        """Returns one row per site, of the last forward pass in training: see `Site.report`."""
        return [site.report() for site in self.sites]

    def fallbacks(self) -> list[Site]:
        """Returns the sites that had to stay dense, without those whose tensor is saved elsewhere."""
        return [site for site in self.sites if site.fallback is not None and not site.saved_elsewhere]

    def check(self) -> None:
        """Holds that no linear fell back, and that every attention site was asked.

        Raises:
            UserError: one did or was not, in the last forward pass in training.
        """
        refuse_fallbacks([site for site in self.fallbacks() if site.kind == "linear"])
        silent = [site.name for site in self.sites if site.kind in ATTENTION and not (site.of or site.saved_elsewhere)]
        if silent and self.selector.keep_frac < 1:
            raise UserError(
                f"these sites saved nothing in the first step: {', '.join(silent)}; the model computes attention in a"
                f" way of its own: leave {' and '.join(ATTENTION)} out of the sites"
            )

    def kept(self) -> dict[str, Any]:
        """Returns asked, achieved (share of the numbers of real tokens), unit, of (what), fallbacks and pinned.

        fallbacks: sites that had to stay dense; pinned: linears that do because another operation saves the tensor.
        """
        active = [site for site in self.sites if not site.saved_elsewhere and site.kind not in EXACT]
        of = sum(site.of * site.num_readers for site in active)
        linears = sum(site.num_readers for site in active if site.kind == "linear")
        others = sorted({site.kind for site in active} - {"linear"})
        places = [f"the inputs of {linears} linears"] if linears else []
        achieved = sum(site.kept * site.num_readers for site in active) / of if of else None
        return {
            "asked": self.selector.keep_frac,
            "achieved": 1.0 if self.selector.keep_frac == 1 or not active else achieved,
            "unit": "saved activations",
            "of": f"{self.selector.unit}s of {' and '.join(places + others)}" if active else "all activations",
            "fallbacks": len(self.fallbacks()),
            "pinned": sum(site.num_readers for site in self.sites if site.saved_elsewhere and site.kind == "linear"),
        }

    def never_selected(self) -> float | None:
        """Returns the share of the linears' input columns never chosen so far; None where columns are not the unit."""
        seen = [
            site.selected_columns for site in self.sites if site.kind == "linear" and site.selected_columns is not None
        ]
        if not seen:
            return None
        return 1 - sum(int(s.sum()) for s in seen) / sum(s.numel() for s in seen)

    def state(self) -> dict[str, Any]:
        """Returns what a resumed run needs to select as an uninterrupted one would, and to count columns on."""
        seen = {
            site.number: site.selected_columns.cpu().clone() for site in self.sites if site.selected_columns is not None
        }
        own = {"seed": self.context.seed, "step": self.context.step, "seen": seen}
        return own if self.norms is None else {**own, "norms": self.norms.state()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continues from `state()` of an earlier process."""
        self.context.seed, self.context.step = state["seed"], state["step"]
        for site in self.sites:
            seen = state["seen"].get(site.number)
            site.selected_columns = None if seen is None else seen.clone()
        if self.norms is not None:
            self.norms.set_state(state["norms"])


def refuse_fallbacks(sites: list[Site]) -> None:
    """Raises a UserError that names `sites` and why each saves all of its input, if there are any."""
    if sites:
        names = ", ".join(f"{site.name} ({site.fallback})" for site in sites)
        raise UserError(f"these linears would save their whole input: {names}; change the setting or allow_fallback")
