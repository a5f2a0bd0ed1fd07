"""Recomputed GELU: the exact saving that costs next to nothing, as a baseline.

The second linear of a feed-forward block saves its input, the GELU's output, though the GELU's input is saved too:
here it is computed again in the backward pass. Gradients are exact, a quarter of a layer's saved bytes goes, and one
elementwise function per layer is added. Any activation function will do.

keep_frac is 1: nothing is left out of any gradient.

Source: "recompute" of activation functions as in Korthikanti et al. 2022 (selective recomputation).
"""

from keepfrac.settings import settings
from keepfrac.sparse.recompute import RecomputedActivations
from keepfrac.training.backward_preset import BackwardPreset
from keepfrac.training.finetune import FineTune


class RecomputeGelu(BackwardPreset):
    """Dense fine-tuning that computes the activation functions' outputs again in the backward pass."""

    saver_class = RecomputedActivations

    @settings
    class Settings(FineTune.Settings, RecomputedActivations.Settings):
        pass
