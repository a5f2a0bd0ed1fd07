"""Late rows: everything is stored in 8 bits, and the rows of each weight gradient are chosen in the backward pass.

The forward pass is unchanged. What the backward pass needs is stored in 8 bits per number (or regenerated: dropout
masks, attention weights), so the bytes no longer depend on keep_frac; and the tokens that form dW = G^T X are chosen
when G has arrived, by its norm, the right criterion, unknown in the forward pass. dX is exact up to the storage.

keep_frac is the share of the real tokens that form each weight gradient: it sets arithmetic alone.

A network without the blocks of `late` (MPNet, DeBERTa, a model of one's own) runs its own code: its linears choose
rows, and hooks store all else that autograd saves in 8 bits; `kept` says "how: any network". See `act8bit.any_network`.

With another method the same is `backward=late`: see `sparse.act8bit.saver`.

Sources: 8-bit storage after Mesa and GACT; winner-take-all rows after WTA-CRS (Liu et al., NeurIPS 2023), whose
gradient norms come from the epoch before. Departures: the norms are those of this very step; padding never counts.
"""

from collections.abc import Iterable

from torch import Tensor

from keepfrac.measurement import costs
from keepfrac.settings import settings, share
from keepfrac.sparse.act8bit import Act8bit
from keepfrac.sparse.act8bit.allocation import allocate_formats
from keepfrac.training.backward_preset import BackwardPreset
from keepfrac.training.finetune import Batch, FineTune

ROWS_OF_A_TRIAL = 8


class LateRows(BackwardPreset):
    """Fine-tuning by blocks that store in 8 bits and choose rows in the backward pass."""

    saver_class = Act8bit

    @settings
    class Settings(FineTune.Settings, Act8bit.Settings):
        budget: float | None = share(
            "share of dense's bytes for which each layer's store and context are then chosen, by measured errors of the"
            " gradient on the first sentences; null: they are as given",
            "(]",
            null=True,
        )

    settings: Settings

    def prepare(self, batches: Iterable[Batch]) -> None:
        self.attach_saver()
        if self.settings.budget is not None:
            self._allocate(next(iter(batches)), self.settings.budget)

    def _allocate(self, batch: Batch, budget: float) -> None:
        device = next(self.net.parameters()).device
        some = {name: tensor[:ROWS_OF_A_TRIAL].to(device) for name, tensor in batch.items()}
        precision = self._trainer.precision if self._trainer else "32-true"

        def step() -> Tensor:
            with costs.autocast(device, precision):
                return self.loss_of(some)[0]

        assert self.backward_saver is not None
        allocate_formats(self.net, self.backward_saver.handle, step, budget=budget)
