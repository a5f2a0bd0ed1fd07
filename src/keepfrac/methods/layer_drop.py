"""Layer drop: whole layers stay, the others are the identity, norms included (Sajjad et al. 2023, section 3.1).

The number of layers is the largest whose cost is within the budget: of 6 layers, keep_frac 0.4 keeps 2, which is 0.333
of the weights; what was achieved stands in the result.

keep_frac is the share of the dense encoder's cost (`cost`) that stays.
"""

from keepfrac.prune.select import select_layers
from keepfrac.prune.structure import Structure
from keepfrac.settings import choice, settings
from keepfrac.training.structured_pruning import CostPruner


class LayerDrop(CostPruner):
    """Keeps whole layers."""

    @settings
    class Settings(CostPruner.Settings):
        order: str = choice("top: the last layers go; alternate: those that go are spread evenly", "top", "alternate")

    settings: Settings

    def choose(self) -> Structure:
        assert self.cost is not None
        return select_layers(self.counts, self.cost, self.keep_frac, self.settings.order)
