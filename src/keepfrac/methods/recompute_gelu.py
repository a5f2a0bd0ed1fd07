"""Recomputed GELU: the exact saving that costs next to nothing, as a baseline.

The second linear of a feed-forward block saves its input, the GELU's output, though the GELU's input is saved too:
here it is computed again in the backward pass. Gradients are exact, a quarter of a layer's saved bytes goes, and one
elementwise function per layer is added. Any activation function will do.

keep_frac is 1: nothing is left out of any gradient.

Source: "recompute" of activation functions as in Korthikanti et al. 2022 (selective recomputation).
"""

from collections.abc import Iterable

from keepfrac.sparse.recompute import Recomputing, recompute_activations
from keepfrac.training.finetune import Batch, FineTune


class RecomputeGelu(FineTune):
    """Dense fine-tuning that computes the activation functions' outputs again in the backward pass."""

    own_layers = True

    recomputing: Recomputing | None = None

    def prepare(self, batches: Iterable[Batch]) -> None:
        if self.recomputing is None:
            self.recomputing = recompute_activations(self.net)

    def finish(self, batches: Iterable[Batch]) -> None:
        if self.recomputing is not None:
            self.recomputing.restore()
            self.recomputing = None
