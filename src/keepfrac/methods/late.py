"""Late rows: everything is stored in 8 bits, and the rows of each weight gradient are chosen in the backward pass.

The forward pass is unchanged. What the backward pass needs is stored in 8 bits per number (or regenerated: dropout
masks, attention weights), so the bytes no longer depend on keep_frac; and the tokens that form dW = G^T X are chosen
when G has arrived, by its norm, the right criterion, unknown in the forward pass. dX is exact up to the storage.

keep_frac is the share of the real tokens that form each weight gradient: it sets arithmetic alone.

Beneath another method the same is `backward=late`: see `sparse.late.saving`.

Sources: 8-bit storage after Mesa and GACT; winner-take-all rows after WTA-CRS (Liu et al., NeurIPS 2023), whose
gradient norms come from the epoch before. Departures: the norms are those of this very step; padding never counts.
"""

from collections.abc import Iterable

from keepfrac.measurement import costs
from keepfrac.settings import choice, count, flag, settings, share
from keepfrac.sparse.kernels import CHOICES
from keepfrac.sparse.late.budget import spend
from keepfrac.sparse.late.saving import LateSaving
from keepfrac.sparse.late.settings import CONTEXTS, ROWS, STORES
from keepfrac.training.finetune import Batch, FineTune

ROWS_OF_A_TRIAL = 8


class LateRows(FineTune):
    """Fine-tuning by blocks that store in 8 bits and choose rows in the backward pass."""

    @settings
    class Settings(FineTune.Settings):
        rows: str = choice("wta: unbiased; grad: the largest, unscaled; random", *ROWS)
        store: str = choice("how activations are stored; mixed: the feed-forward input in bf16", *STORES)
        context: str = choice("whether attention's output is saved or recomputed", *CONTEXTS)
        skip_zero_rows: bool = flag("whether rows whose gradient is zero (padding) are left out everywhere; exact")
        budget: float | None = share(
            "share of dense's bytes for which each layer's store and context are then chosen, by measured errors of the"
            " gradient on the first sentences; null: they are as given",
            "(]",
            null=True,
        )
        kernels: str = choice("what computes", *CHOICES)
        selection_seed: int = count("seed of the random choices and of the dropout masks", least=0)

    settings: Settings

    own_layers = True

    def __init__(self, net, task, loop, settings: Settings):
        super().__init__(net, task, loop, settings)
        self.saving: LateSaving = LateSaving(**{k: v for k, v in settings.plain().items() if k != "budget"})

    def prepare(self, batches: Iterable[Batch]) -> None:
        if self.saving.handle is None:
            self.save_less()
            if self.settings.budget is not None:
                self._spend(next(iter(batches)), self.settings.budget)

    def _spend(self, batch: Batch, budget: float) -> None:
        device = next(self.net.parameters()).device
        some = {name: tensor[:ROWS_OF_A_TRIAL].to(device) for name, tensor in batch.items()}
        precision = self._trainer.precision if self._trainer else "32-true"

        def step():
            with costs.autocast(device, precision):
                return self.loss_of(some)[0]

        assert self.saving.handle is not None
        spend(self.net, self.saving.handle, step, budget)

    def kept(self) -> dict:
        return self.saving.kept() or super().kept()

    def finish(self, batches: Iterable[Batch]) -> None:
        self.saving.detach()
