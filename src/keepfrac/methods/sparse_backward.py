"""Sparse backward: the forward pass is dense and exact; a part of each activation is kept for the weight gradient.

In Y = X W^T the backward pass needs X for dW = G^T X alone; dX = G W needs only W. A selector keeps a share of X, so
with sites=[linear] dX is exact and dW is the product with what was kept. `rand`, `norm`, `bkrz` are this one class with
different selectors; query, key and value share one selection.

keep_frac is the share of each linear's saved input that is kept: of its columns, token rows, blocks or elements.

Sources: "Bert Finetune Backward Sparsify" (rand, norm); BackRazor, Jiang et al., NeurIPS 2022 (bkrz). Departures: a
column is a feature of all tokens (their code keeps runs of L consecutive numbers: unit=block), one selection for query,
key and value, padding is never selected, dW on two-dimensional views, packed masks, exact counts under ties.
"""

from collections.abc import Iterable
from dataclasses import fields

from keepfrac.errors import UserError
from keepfrac.sparse.convert import SITES, sparsify
from keepfrac.sparse.selection.selectors import Selector
from keepfrac.training.finetune import Batch, FineTune


class SparseBackward(FineTune):
    """Fine-tuning that keeps a part of the activations for the backward pass.

    Args:
        name: the method's name in results.
        keep_frac: share of the units that is kept, in (0, 1].
        sites: what is made sparse: linear, and opt-in attention, softmax, layer_norm, activation, dropout (the last two
            exact, as packed bits).
        unit: column | token | block | element.
        rule: top | sampled | mixed | random | stratified | shifted_relu.
        norm: inf | l1 | l2 | var: the size by which units are ranked.
        scale: none | inverse (1 / the probability of being kept, for random rules).
        scope: batch | sample: among whom units compete.
        share: of the budget that `mixed` draws at random, in [0, 1].
        coverage: share of the budget that visits all columns in turn, in [0, 1].
        selection_seed: seed of the random choices.
        net: see FineTune.
        task: see FineTune.
        loop: see FineTune.
    """

    own_layers = True

    def __init__(
        self,
        *,
        net,
        task,
        loop,
        name,
        keep_frac,
        sites,
        unit,
        rule,
        norm,
        scale,
        scope,
        share,
        coverage,
        selection_seed,
    ):
        super().__init__(net, task, loop, name, keep_frac)
        self.watched_fallbacks = False
        self.sites, self.selection_seed = tuple(sites), selection_seed
        self.selector = Selector(
            keep_frac=keep_frac,
            unit=unit,
            rule=rule,
            norm=norm,
            scale=scale,
            scope=scope,
            share=share,
            coverage=coverage,
        )
        self.sparsified = None

    @staticmethod
    def check(settings: dict) -> None:
        """Refuses a bad setting before a sweep starts."""
        if unknown := sorted(set(settings["sites"]) - set(SITES)):
            raise UserError(f"method.sites={unknown}: choose among {', '.join(SITES)}")
        names = [field.name for field in fields(Selector)]
        Selector(**{name: settings[name] for name in names})

    def after_step(self) -> None:
        if not self.watched_fallbacks and self.sparsified is not None:
            self.sparsified.check()  # a linear that had to stay dense in this first step
            self.watched_fallbacks = True

    def prepare(self, batches: Iterable[Batch]) -> None:
        if self.sparsified is None:
            self.sparsified = sparsify(self.net, self.sites, self.selector, self.selection_seed)

    def kept(self) -> dict:
        if self.sparsified is None:
            return super().kept()
        return {**self.sparsified.kept(), "never_selected": self.sparsified.never_selected()}

    def get_extra_state(self) -> dict:
        return {"selection": self.sparsified.rng_state() if self.sparsified else None}

    def set_extra_state(self, state: dict) -> None:
        if self.sparsified is not None and state["selection"] is not None:
            self.sparsified.set_rng_state(state["selection"])
