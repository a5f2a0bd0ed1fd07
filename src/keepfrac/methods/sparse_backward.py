"""Sparse backward: the forward pass is dense and exact; a part of each activation is kept for the weight gradient.

In Y = X W^T the backward pass needs X for dW = G^T X alone; dX = G W needs only W. A selector keeps a share of X, so
with sites=[linear] dX is exact and dW is the product with what was kept. `rand`, `norm`, `bkrz` are this one class with
different selectors; query, key and value share one selection.

keep_frac is the share of each linear's saved input that is kept: of its columns, token rows, blocks or elements.

Sources: "Bert Finetune Backward Sparsify" (rand, norm); BackRazor, Jiang et al., NeurIPS 2022 (bkrz). Departures: a
column is a feature of all tokens (their code keeps runs of L consecutive numbers: unit=block), one selection for query,
key and value, padding is never selected, dW on two-dimensional views, packed masks, exact counts under ties.
"""

from collections.abc import Iterable, Sequence
from dataclasses import fields

from keepfrac.settings import choice, count, settings, share, some_of
from keepfrac.sparse.convert import SITES, sparsify
from keepfrac.sparse.selection.selectors import NORMS, RULES, SCALES, SCOPES, UNITS, Selector
from keepfrac.sparse.sparsified import Sparsified
from keepfrac.training.finetune import Batch, FineTune


class SparseBackward(FineTune):
    """Fine-tuning that keeps a part of the activations for the backward pass."""

    @settings
    class Settings(FineTune.Settings):
        sites: Sequence[str] = some_of("what is made sparse; activation and dropout are exact, as packed bits", *SITES)
        unit: str = choice("what is kept or not as one", *UNITS)
        rule: str = choice("how units are chosen", *RULES)
        norm: str = choice("the size by which units are ranked; var: the variance", *NORMS)
        scale: str = choice("inverse: what is kept by chance is divided by its probability", *SCALES)
        scope: str = choice("among whom units compete", *SCOPES)
        coverage: float = share("share of the budget that visits all columns in turn")
        share: float = share("share of the budget that rule=mixed draws at random")
        selection_seed: int = count("seed of the random choices", least=0)

        def check(self) -> None:
            super().check()
            self.selector()

        def selector(self) -> Selector:
            """Returns what chooses.

            Raises:
                UserError: two values do not go together.
            """
            return Selector(**{field.name: getattr(self, field.name) for field in fields(Selector)})

    settings: Settings

    own_layers = True

    def __init__(self, net, task, loop, settings: Settings):
        super().__init__(net, task, loop, settings)
        self.fallbacks_checked = False
        self.sparsified: Sparsified | None = None

    def after_step(self) -> None:
        if not self.fallbacks_checked and self.sparsified is not None:
            self.sparsified.check()  # a linear that had to stay dense in this first step
            self.fallbacks_checked = True

    def prepare(self, batches: Iterable[Batch]) -> None:
        if self.sparsified is None:
            own = self.settings
            self.sparsified = sparsify(self.net, tuple(own.sites), own.selector(), own.selection_seed)

    def kept(self) -> dict:
        if self.sparsified is None:
            return super().kept()
        return {**self.sparsified.kept(), "never_selected": self.sparsified.never_selected()}

    def get_extra_state(self) -> dict:
        return {"selection": self.sparsified.rng_state() if self.sparsified else None}

    def set_extra_state(self, state: dict) -> None:
        if self.sparsified is not None and state["selection"] is not None:
            self.sparsified.set_rng_state(state["selection"])
