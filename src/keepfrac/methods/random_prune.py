"""Random: heads and neurons drawn at random stay; what any score must beat.

keep_frac is the share of the dense encoder's cost (`cost`) that stays.
"""

from keepfrac.prune.budget import UnitScores
from keepfrac.prune.scores import random
from keepfrac.settings import count, settings
from keepfrac.training.structured_pruning import UnitPruner


class RandomPrune(UnitPruner):
    """Keeps heads and neurons drawn at random."""

    @settings
    class Settings(UnitPruner.Settings):
        selection_seed: int = count("seed of the draw", least=0)

    settings: Settings

    def scores(self) -> UnitScores:
        return random(self.net, self.layers, self.settings.selection_seed)
