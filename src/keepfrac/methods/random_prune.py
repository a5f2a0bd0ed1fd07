"""Random: heads and neurons drawn at random stay; what any score must beat.

keep_frac is the share of the dense encoder's cost (`cost`) that stays.
"""

from keepfrac.prune.budget import UnitScores
from keepfrac.prune.scores import random
from keepfrac.training.structured_pruning import Budget, Pruner


class RandomPrune(Pruner):
    """Keeps heads and neurons drawn at random.

    Args:
        selection_seed: of the draw.
        name: see Pruner, as for all others.
    """

    def __init__(
        self,
        *,
        net,
        task,
        loop,
        name,
        keep_frac,
        cost,
        length,
        latency,
        scope,
        align,
        floor,
        allow_empty,
        drop_empty,
        settled_at,
        selection_seed,
    ):
        budget = Budget(cost, length, latency, scope, align, floor, allow_empty, drop_empty)
        super().__init__(net, task, loop, name, keep_frac, budget, settled_at)
        self.selection_seed = selection_seed

    def scores(self) -> UnitScores:
        return random(self.net, self.layers, self.selection_seed)
