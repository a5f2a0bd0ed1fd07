"""Sparse backward: the forward pass is dense and exact; a part of each activation is kept for the weight gradient.

In Y = X W^T the backward pass needs X for dW = G^T X alone; dX = G W needs only W. A selector keeps a share of X, so
with sites=[linear] dX is exact and dW is the product with what was kept. `rand`, `norm`, `bkrz` are this one class with
different selectors; query, key and value share one selection.

keep_frac is the share of each linear's saved input that is kept: of its columns, token rows, blocks or elements.

Sources: "Bert Finetune Backward Sparsify" (rand, norm); BackRazor, Jiang et al., NeurIPS 2022 (bkrz). Departures: a
column is a feature of all tokens (their code keeps runs of L consecutive numbers: unit=block), one selection for query,
key and value, padding is never selected, dW on two-dimensional views, packed masks, exact counts under ties.
"""

from keepfrac.settings import settings
from keepfrac.sparse.convert import SparseActivations
from keepfrac.training.backward_preset import BackwardPreset
from keepfrac.training.finetune import FineTune


class SparseBackward(BackwardPreset):
    """Fine-tuning that keeps a part of the activations for the backward pass."""

    saver_class = SparseActivations

    @settings
    class Settings(FineTune.Settings, SparseActivations.Settings):
        pass
