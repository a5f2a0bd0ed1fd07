"""Late rows beneath any method: what that method's layers keep for the backward pass, in 8 bits.

`method=late` is this and nothing else. Beneath another method (`backward=late`) the layers are converted when that
method has made its model ready, and are stock again before it finishes. What the method puts onto the layers stays:

    low-rank updates    the frozen weights get no gradient, and only what the updates need is stored
    gates               heads, neurons, sub-layers, layers and ranks; read from their hooks at every step
    masks, cut layers   zeros and sizes stay as they are
    a teacher           logits and hidden states, not the attention scores, which no block forms

keep_frac is the share of the real tokens in each weight gradient, of gates on ranks too; the gradients of other gates
and of biases go over all.
"""

from dataclasses import asdict
from typing import Any

from torch import nn

from keepfrac.errors import UserError
from keepfrac.sparse.late.convert import Late, convert
from keepfrac.sparse.late.settings import Settings, Storing


class LateSaving(nn.Module):
    """Converts a network's layers, and holds what a resumed run needs.

    Args:
        name: of the preset, in results.
        keep_frac: share of the real tokens in each weight gradient, in (0, 1].
        rows: wta (unbiased) | grad (the largest, unscaled) | random.
        store: 8bit | mixed (the feed-forward input in bf16) | bf16 | exact.
        context: save | recompute: attention's output.
        skip_zero_rows: whether rows whose gradient is exactly zero (padding) are left out everywhere; exact.
        kernels: see conf/method/late.yaml.
        selection_seed: seed of the random choices and of the dropout masks.
    """

    def __init__(self, *, name, keep_frac, rows, store, context, skip_zero_rows, kernels, selection_seed):
        super().__init__()
        self.name = name
        self.choices = (keep_frac, rows, store, context, skip_zero_rows, selection_seed, kernels)
        self.handle: Late | None = None

    @staticmethod
    def check(settings: dict) -> None:
        """Refuses a bad setting before a sweep starts.

        Raises:
            UserError: names it, and what is allowed.
        """
        names = ("keep_frac", "rows", "store", "context", "skip_zero_rows", "kernels")
        Settings(**{name: settings[name] for name in names})

    def attach(self, net: nn.Module, recipe: Any = None) -> Late:
        """Converts `net`, unless that is done; returns the handle.

        Args:
            net: the model that trains.
            recipe: of the teacher's terms; None: no teacher.

        Raises:
            UserError: see `convert`; or a term that the blocks cannot give.
        """
        if self.handle is None:
            if recipe is not None and recipe.w_att:
                raise UserError(
                    f"late forms no attention scores to distil from (distill.w_att={recipe.w_att}): choose"
                    " distill=hidden or distill=logits, or set distill.w_att=0"
                )
            self.handle = convert(net, *self.choices)
        return self.handle

    def detach(self) -> None:
        """Makes the layers stock again."""
        if self.handle is not None:
            self.handle.restore()

    def kept(self) -> dict[str, Any]:
        """Returns asked, achieved, unit and `of`; empty before `attach`."""
        return {} if self.handle is None else self.handle.kept()

    def beside(self) -> dict[str, Any]:
        """Returns the same for the results of another method, by names of its own."""
        found = self.kept()
        return {f"backward_{key}": found[key] for key in ("asked", "achieved", "of") if key in found}

    def get_extra_state(self) -> dict[str, Any]:
        if self.handle is None or not self.handle.layers:
            return {"late": None, "storing": None}
        return {"late": self.handle.rng_state(), "storing": [asdict(one) for one in self.handle.storings()]}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        if self.handle is not None and self.handle.layers and state["late"] is not None:
            self.handle.set_rng_state(state["late"])
            self.handle.store_by([Storing(**one) for one in state["storing"]])
