"""Layer drop: whole layers stay, the others are the identity, norms included (Sajjad et al. 2023, section 3.1).

The number of layers is the largest whose cost is within the budget: of 6 layers, keep_frac 0.4 keeps 2, which is 0.333
of the weights; what was achieved stands in the result.

keep_frac is the share of the dense encoder's cost (`cost`) that stays.
"""

from keepfrac.errors import UserError
from keepfrac.prune.cost import fraction
from keepfrac.prune.scores import layers_to_keep
from keepfrac.prune.structure import Structure, keep_layers
from keepfrac.training.structured_pruning import Budget, Pruner


class LayerDrop(Pruner):
    """Keeps whole layers.

    Args:
        order: top (the last layers go) | alternate (those that go are spread evenly).
        name: see Pruner, as for all others.
    """

    def __init__(self, *, net, task, loop, name, keep_frac, cost, length, latency, settled_at, order):
        budget = Budget(cost, length, latency, "global", {}, {}, allow_empty=True, drop_empty=False)
        super().__init__(net, task, loop, name, keep_frac, budget, settled_at)
        self.order = order

    def choose(self) -> Structure:
        assert self.cost is not None
        whole = Structure.full(self.counts).layers
        for num in range(len(whole), 0, -1):
            kept = layers_to_keep(len(whole), num, self.order)
            if fraction(self.cost, [whole[i].counts for i in kept]) <= self.keep_frac + 1e-9:
                return keep_layers(self.counts, kept)
        least, most = (float(fraction(self.cost, counts)) for counts in (self.counts[:1], self.counts))
        raise UserError(
            f"keep_frac {self.keep_frac:g} of the {self.cost.unit} cannot be reached by whole layers: it can be "
            f"{least:.4f} to {most:.4f}"
        )
