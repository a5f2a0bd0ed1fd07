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

from keepfrac.sparse.late.budget import spend
from keepfrac.sparse.late.saving import LateSaving

from keepfrac.errors import UserError
from keepfrac.measurement import costs
from keepfrac.training.finetune import Batch, FineTune

ROWS_OF_A_TRIAL = 8


class LateRows(FineTune):
    """Fine-tuning by blocks that store in 8 bits and choose rows in the backward pass.

    Args:
        name: the method's name in results.
        keep_frac: share of the real tokens in each weight gradient, in (0, 1].
        rows: wta (unbiased) | grad (the largest, unscaled) | random.
        store: 8bit | mixed (the feed-forward input in bf16) | bf16 | exact.
        context: save | recompute: attention's output.
        skip_zero_rows: whether rows whose gradient is exactly zero (padding) are left out everywhere; exact.
        budget: share of dense's bytes, in (0, 1], for which each layer's store and context are then chosen by
            measured errors of the gradient on the first sentences; null: they are as given.
        kernels: auto | cpp | native | triton | torch.
        selection_seed: seed of the random choices and of the dropout masks.
        net: see FineTune.
        task: see FineTune.
        loop: see FineTune.
    """

    own_layers = True

    def __init__(
        self, *, net, task, loop, name, keep_frac, rows, store, context, skip_zero_rows, budget, kernels, selection_seed
    ):
        super().__init__(net, task, loop, name, keep_frac)
        self.saving: LateSaving = LateSaving(
            name=name,
            keep_frac=keep_frac,
            rows=rows,
            store=store,
            context=context,
            skip_zero_rows=skip_zero_rows,
            kernels=kernels,
            selection_seed=selection_seed,
        )
        self.budget = budget

    @staticmethod
    def check(settings: dict) -> None:
        """Refuses a bad setting before a sweep starts."""
        LateSaving.check(settings)
        budget = settings["budget"]
        if budget is not None and (isinstance(budget, str | bool) or not 0 < budget <= 1):
            raise UserError(f"method.budget={budget}: must be a share of dense's bytes in (0, 1], or null")

    def prepare(self, batches: Iterable[Batch]) -> None:
        if self.saving.handle is None:
            self.save_less()
            if self.budget is not None:
                self._spend(next(iter(batches)))

    def _spend(self, batch: Batch) -> None:
        device = next(self.net.parameters()).device
        some = {name: tensor[:ROWS_OF_A_TRIAL].to(device) for name, tensor in batch.items()}
        precision = self._trainer.precision if self._trainer else "32-true"

        def step():
            with costs.autocast(device, precision):
                return self.loss_of(some)[0]

        assert self.saving.handle is not None
        spend(self.net, self.saving.handle, step, self.budget)

    def kept(self) -> dict:
        return self.saving.kept() or super().kept()

    def finish(self, batches: Iterable[Batch]) -> None:
        self.saving.detach()
