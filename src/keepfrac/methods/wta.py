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

from keepfrac.settings import settings
from keepfrac.sparse.gradient_norms import WinnerTakeAllRows
from keepfrac.training.backward_preset import BackwardPreset
from keepfrac.training.finetune import FineTune


class WinnerTakeAll(BackwardPreset):
    """Fine-tuning that keeps tokens' rows by chance, unbiased."""

    saver_class = WinnerTakeAllRows

    @settings
    class Settings(FineTune.Settings, WinnerTakeAllRows.Settings):
        pass
