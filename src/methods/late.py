"""Late rows: everything is stored in 8 bits, and the rows of each weight gradient are chosen in the backward pass.

The forward pass is unchanged. What the backward pass needs is stored in 8 bits per number (or regenerated: dropout
masks, attention weights), so the bytes no longer depend on keep_frac; and the tokens that form dW = G^T X are chosen
when G has arrived, by its norm, the right criterion, unknown in the forward pass. dX is exact up to the storage.

keep_frac is the share of the real tokens that form each weight gradient: it sets arithmetic alone.

Sources: 8-bit storage after Mesa and GACT; winner-take-all rows after WTA-CRS (Liu et al., NeurIPS 2023), whose
gradient norms come from the epoch before. Departures: the norms are those of this very step; padding never counts.
"""

from collections.abc import Iterable

from src.finetune import Batch, FineTune
from src.sparse import late


class LateRows(FineTune):
    """Fine-tuning by blocks that store in 8 bits and choose rows in the backward pass.

    Args:
        name: the method's name in results.
        keep_frac: share of the real tokens in each weight gradient, in (0, 1].
        rows: wta (unbiased) | grad (the largest, unscaled) | random.
        store: 8bit | mixed (the feed-forward input in bf16) | bf16 | exact.
        context: save | recompute: attention's output.
        skip_zero_rows: whether rows whose gradient is exactly zero (padding) are left out everywhere; exact.
        kernels: auto | cpp | native | torch.
        selection_seed: seed of the random choices and of the dropout masks.
    """

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
        kernels,
        selection_seed,
    ):
        super().__init__(net, task, loop, name, keep_frac)
        self.choices = (keep_frac, rows, store, context, skip_zero_rows, selection_seed, kernels)
        self.late: late.Late | None = None

    def prepare(self, batches: Iterable[Batch]) -> None:
        if self.late is None:
            self.late = late.convert(self.net, *self.choices)

    def kept(self) -> dict:
        return self.late.kept() if self.late else super().kept()

    def finish(self, batches: Iterable[Batch]) -> None:
        if self.late is not None:
            self.late.restore()

    def get_extra_state(self) -> dict:
        return {"late": self.late.rng_state() if self.late else None}

    def set_extra_state(self, state: dict) -> None:
        if self.late is not None and state["late"] is not None:
            self.late.set_rng_state(state["late"])
