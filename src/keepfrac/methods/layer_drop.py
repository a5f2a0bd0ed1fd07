"""Layer drop: whole layers stay, the others are the identity, norms included (Sajjad et al. 2023, section 3.1).

The number of layers is the largest whose cost is within the budget: of 6 layers, keep_frac 0.4 keeps 2, which is 0.333
of the weights; what was achieved stands in the result.

keep_frac is the share of the dense encoder's cost (`cost`) that stays.
"""

from keepfrac.errors import UserError
from keepfrac.prune.cost import fraction
from keepfrac.prune.scores import layers_to_keep
from keepfrac.prune.structure import Structure, keep_layers
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
        whole = Structure.full(self.counts).layers
        for num in range(len(whole), 0, -1):
            kept = layers_to_keep(len(whole), num, self.settings.order)
            if fraction(self.cost, [whole[i].counts for i in kept]) <= self.keep_frac + 1e-9:
                return keep_layers(self.counts, kept)
        least, most = (float(fraction(self.cost, counts)) for counts in (self.counts[:1], self.counts))
        raise UserError(
            f"keep_frac {self.keep_frac:g} of the {self.cost.unit} cannot be reached by whole layers: it can be "
            f"{least:.4f} to {most:.4f}"
        )
