"""Late rows: everything is stored in 8 bits, and the rows of each weight gradient are chosen in the backward pass.

The forward pass is unchanged. What the backward pass needs is stored in 8 bits per number (or regenerated: dropout
masks, attention weights), so the bytes no longer depend on keep_frac; and the tokens that form dW = G^T X are chosen
when G has arrived, by its norm, the right criterion, unknown in the forward pass. dX is exact up to the storage.

keep_frac is the share of the real tokens that form each weight gradient: it sets arithmetic alone.

Sources: 8-bit storage after Mesa and GACT; winner-take-all rows after WTA-CRS (Liu et al., NeurIPS 2023), whose
gradient norms come from the epoch before. Departures: the norms are those of this very step; padding never counts.
"""

from collections.abc import Iterable
from dataclasses import asdict

from src import measure
from src.errors import UserError
from src.finetune import Batch, FineTune
from src.sparse import late
from src.sparse.late.budget import spend
from src.sparse.late.settings import Settings, Storing

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
        kernels: auto | cpp | native | torch.
        selection_seed: seed of the random choices and of the dropout masks.
        net: see FineTune.
        task: see FineTune.
        loop: see FineTune.
    """

    own_dropout = True  # its masks are not torch's: the probe compares gradients without any

    def __init__(
        self,
        *,
        net,
        task,
        loop,
        name,
        keep_frac,
        rows,
        store,
        context,
        skip_zero_rows,
        budget,
        kernels,
        selection_seed,
    ):
        super().__init__(net, task, loop, name, keep_frac)
        self.choices = (keep_frac, rows, store, context, skip_zero_rows, selection_seed, kernels)
        self.budget = budget
        self.sparsified: late.Late | None = None

    @staticmethod
    def check(settings: dict) -> None:
        """Refuses a bad setting before a sweep starts."""
        names = ("keep_frac", "rows", "store", "context", "skip_zero_rows", "kernels")
        Settings(**{name: settings[name] for name in names})
        budget = settings["budget"]
        if budget is not None and (isinstance(budget, str | bool) or not 0 < budget <= 1):
            raise UserError(f"method.budget={budget}: must be a share of dense's bytes in (0, 1], or null")

    def prepare(self, batches: Iterable[Batch]) -> None:
        if self.sparsified is None:
            self.sparsified = late.convert(self.net, *self.choices)
            if self.budget is not None:
                self._spend(self.sparsified, next(iter(batches)))

    def _spend(self, handle: late.Late, batch: Batch) -> None:
        device = next(self.net.parameters()).device
        some = {name: tensor[:ROWS_OF_A_TRIAL].to(device) for name, tensor in batch.items()}
        precision = self._trainer.precision if self._trainer else "32-true"

        def step():
            with measure.autocast(device, precision):
                return self.loss_of(some)[0]

        spend(self.net, handle, step, self.budget)

    def kept(self) -> dict:
        return self.sparsified.kept() if self.sparsified else super().kept()

    def finish(self, batches: Iterable[Batch]) -> None:
        if self.sparsified is not None:
            self.sparsified.restore()

    def get_extra_state(self) -> dict:
        if self.sparsified is None:
            return {"late": None, "storing": None}
        storing = [asdict(one) for one in self.sparsified.storings()]
        return {"late": self.sparsified.rng_state(), "storing": storing}

    def set_extra_state(self, state: dict) -> None:
        if self.sparsified is not None and state["late"] is not None:
            self.sparsified.set_rng_state(state["late"])
            self.sparsified.store_by([Storing(**one) for one in state["storing"]])
