"""Winner-take-all rows, chosen in the forward pass: the unbiased relative of `norm_token`.

A linear's weight gradient is a sum over tokens. Each real token is kept with a chance proportional to its weight, the
heaviest for certain, and what was kept by chance is divided by its chance, so that the gradient is right in the mean.
The weight is the norm of the token's input, and with gradient_norms times the norm that its gradient had when the
sentence came by last (in the first epoch the input alone decides).

keep_frac is the share of the real tokens whose rows each linear keeps of its input.

Source: Liu et al., NeurIPS 2023 (WTA-CRS, arXiv 2305.15265). Departures: systematic sampling without replacement in
place of independent draws; sentences are known by their tokens, not by row numbers; linears alone, so dX is exact;
query, key and value share one choice.
"""

from collections.abc import Iterable

from keepfrac.settings import count, flag, settings
from keepfrac.sparse.convert import sparsify
from keepfrac.sparse.gradient_norms import GradientNorms
from keepfrac.sparse.selection.selectors import Selector
from keepfrac.sparse.sparsified import Sparsified
from keepfrac.training.finetune import Batch, FineTune


class WinnerTakeAll(FineTune):
    """Fine-tuning that keeps tokens' rows by chance, unbiased."""

    @settings
    class Settings(FineTune.Settings):
        gradient_norms: bool = flag(
            "whether the norms of the gradients of the epoch before are used: 2 bytes per token of the training set and"
            " site, in memory and in checkpoints; each process keeps its own"
        )
        selection_seed: int = count("seed of the random choices", least=0)

    settings: Settings

    own_layers = True

    def __init__(self, net, task, loop, settings: Settings):
        super().__init__(net, task, loop, settings)
        self.sparsified: Sparsified | None = None
        self.norms: GradientNorms | None = None

    def prepare(self, batches: Iterable[Batch]) -> None:
        if self.sparsified is None:
            selector = Selector(keep_frac=self.keep_frac, unit="token", rule="sampled", norm="l2", scale="inverse")
            self.sparsified = sparsify(self.net, ("linear",), selector, self.settings.selection_seed)
            if self.settings.gradient_norms:
                self.norms = GradientNorms(self.net, self.sparsified)

    def finish(self, batches: Iterable[Batch]) -> None:
        if self.norms is not None:
            self.norms.remove()

    def kept(self) -> dict:
        return super().kept() if self.sparsified is None else self.sparsified.kept()

    def get_extra_state(self) -> dict:
        return {
            "selection": self.sparsified.rng_state() if self.sparsified else None,
            "norms": self.norms.state() if self.norms else None,
        }

    def set_extra_state(self, state: dict) -> None:
        if self.sparsified is not None and state["selection"] is not None:
            self.sparsified.set_rng_state(state["selection"])
        if self.norms is not None and state["norms"] is not None:
            self.norms.set_state(state["norms"])
