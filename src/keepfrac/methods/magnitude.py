"""Magnitude: the heads and neurons that own the largest weights stay.

The score of a unit is the l2 norm of all weights that it owns: of a head its slices of query, key, value and output,
of a neuron its row and its column. The two families own different numbers of weights, so each is sorted by itself
(scope=family). A baseline: Han et al. 2015, for units in place of weights.

keep_frac is the share of the dense encoder's cost (`cost`) that stays.
"""

from keepfrac.prune.budget import UnitScores
from keepfrac.prune.scores import magnitude
from keepfrac.training.structured_pruning import UnitPruner


class MagnitudePrune(UnitPruner):
    """Keeps the heads and neurons of the largest weights."""

    def scores(self) -> UnitScores:
        return magnitude(self.net, self.layers)
