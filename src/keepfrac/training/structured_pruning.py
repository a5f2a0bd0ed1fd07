"""Pruner: what all structured pruning methods share, from the budget to the cut model.

A method says which units matter (`scores`, or `choose` where it names the structure itself). Once, at `settled_at`, the
structure is chosen: the units of the highest scores whose exact cost is the budget. From then on the others are masked,
and the rest of the fit recovers. `finish` folds what scales the kept units into the weights, slices the others away,
and holds the cut model against its masked self on real batches. With settled_at 0 the cut comes before training, which
then is as fast as the small model is.

keep_frac is a share of the dense original's cost, also where the model was cut before.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from keepfrac.models.anatomy import Layer
from keepfrac.models.cut import counts_of, cut, encoder_layers, largest_difference, shape_of
from keepfrac.models.slicing import slice_tensors
from keepfrac.prune.accounting import kept
from keepfrac.prune.attach import FixedGates, attach, gates_of
from keepfrac.prune.budget import UnitScores
from keepfrac.prune.cost import Cost, LatencyCost, MacsCost, ParamsCost
from keepfrac.prune.latency import DTYPES, cached_table
from keepfrac.prune.masks import Masks
from keepfrac.prune.select import Limits, Scope, select
from keepfrac.prune.settings import check_budget, check_settled_at
from keepfrac.prune.structure import LayerCounts, ModelShape, Structure
from keepfrac.storage.cache import cache_folder
from keepfrac.training.finetune import Batch, FineTune

TOLERANCE = 1e-4
BATCHES = 4


@dataclass(frozen=True)
class Budget:
    """What keep_frac is a share of, and what the units that stay must respect: see the arguments of `Pruner`."""

    cost: str
    length: int
    latency: Mapping
    scope: Scope
    align: Mapping[str, int]
    floor: Mapping[str, int]
    allow_empty: bool
    drop_empty: bool

    def __post_init__(self) -> None:
        check_budget(vars(self))

    @property
    def limits(self) -> Limits:
        """As a selection takes them."""
        return Limits(self.align, self.floor, self.allow_empty)


class Pruner(FineTune):
    """Fine-tuning in which a share of the encoder's units stays.

    Args:
        net: see FineTune.
        task: see FineTune.
        loop: see FineTune.
        name: the method's name in results.
        keep_frac: share of the dense encoder's cost that stays, in (0, 1]; 1 is dense fine-tuning.
        budget: the arguments from here on, which every method has.
        cost: params (weights of the encoder's linears) | macs | latency (measured on this device, then cached).
        length: tokens of the sentence for which macs and latency are counted, >= 1.
        latency: rows, dtype and repeats of the measurement of cost=latency.
        scope: global | family | layer: among which units the budget is shared out.
        align: by family, kept counts are multiples of this, >= 1.
        floor: by family, the least that a sub-layer keeps which stays, >= 1.
        allow_empty: whether a sub-layer may lose all its units.
        drop_empty: whether a layer without units goes whole, with its norms.
        settled_at: progress at which the structure is chosen, in [0, 1].
    """

    merges = True
    """Whether factors at or above break-even are delivered as one dense linear, and counted so."""

    def __init__(self, net, task, loop, name: str, keep_frac: float, budget: Budget, settled_at: float):
        super().__init__(net, task, loop, name, keep_frac)
        check_settled_at({"settled_at": settled_at})
        self.budget, self.settled_at = budget, settled_at
        self.cost: Cost | None = None
        self.layers: Sequence[Layer] = ()
        self.counts: list[LayerCounts] = []
        self.structure: Structure | None = None
        self.handles: list[RemovableHandle] = []

    @staticmethod
    def check(settings: dict) -> None:
        """Checks what needs no model."""
        check_budget(settings)
        check_settled_at(settings)

    # what a method gives ---------------------------------------------------------------------------------------------

    def scores(self) -> UnitScores:
        """Returns how much each unit matters."""
        raise NotImplementedError

    def choose(self) -> Structure:
        """Returns what stays.

        Raises:
            UserError: the budget cannot be reached; the message says the range that can.
        """
        assert self.cost is not None
        chosen = select(self.scores(), self.cost, self.keep_frac, self.budget.limits, self.budget.scope)
        return chosen.without_empty_layers() if self.budget.drop_empty else chosen

    def values(self) -> FixedGates | None:
        """Returns what is folded into the kept weights; None: they stay as they are."""
        return None

    def mask(self, structure: Structure) -> None:
        """Makes the model compute what its cut self will."""
        device = next(self.net.parameters()).device
        self.handles = attach(self.net, self.layers, gates_of(structure, self.counts, device))

    def unmask(self) -> None:
        """Takes the masks off."""
        while self.handles:
            self.handles.pop().remove()

    # hooks -----------------------------------------------------------------------------------------------------------

    def prepare(self, batches: Iterable[Batch]) -> None:
        if self.cost is None:
            self.cost = self._cost()
            self._look()
            if self.keep_frac < 1:
                self.choose()  # an error comes before training
            if self.keep_frac < 1 and self.settled_at == 0:
                self._settle()
                self._cut(batches)

    def after_step(self) -> None:
        done = (self.global_step + 1) / max(1, self.loop.total_steps)  # Lightning counts the step after this hook
        if self.keep_frac < 1 and self.structure is None and done >= self.settled_at:
            self._settle()

    def finish(self, batches: Iterable[Batch]) -> None:
        self.prepare(batches)  # a run without training has not been prepared
        if self.keep_frac == 1 or not self.layers:
            return
        if self.structure is None:
            self._settle()
        self._cut(batches)

    def kept(self) -> dict:
        if self.cost is None:
            return super().kept()
        counts = self.expected()
        shown = {"layer_heads": [c.heads for c in counts], "layer_ffn": [c.neurons for c in counts]}
        return {**kept(self.cost, self.keep_frac, counts), **(shown if self.structure else {})}

    def get_extra_state(self) -> dict:
        return {"structure": self.structure.to_json() if self.structure and self.layers else None}

    def set_extra_state(self, state: dict) -> None:
        if state["structure"] and self.structure is None:
            self.structure = Structure.from_json(state["structure"])
            self.mask(self.structure)

    # -----------------------------------------------------------------------------------------------------------------

    def expected(self) -> list[LayerCounts]:
        """Returns the counts that the model has, or will have once it is cut."""
        return self.structure.counts() if self.structure and self.layers else counts_of(self.net)

    def _look(self) -> None:
        self.layers, self.counts = encoder_layers(self.net), counts_of(self.net)

    def _settle(self) -> None:
        self.structure = self.choose()
        self.mask(self.structure)

    def _cut(self, batches: Iterable[Batch]) -> None:
        """Slices away what does not stay, and holds the result against the masked model."""
        assert self.structure is not None
        training = self.training
        self.eval()
        small = cut(self.net, self.structure, self.values(), self.merges)
        inputs = [self._inputs(batch) for batch in itertools.islice(batches, BATCHES)]
        largest_difference(_logits(self.net), _logits(small), inputs, TOLERANCE)
        if self.masks is not None:
            sliced = slice_tensors(dict(self.masks.items()), self.layers, self.structure)
            left = dict(small.named_parameters())  # two masked factors that were merged have no zeros any more
            self.masks = Masks({name: mask for name, mask in sliced.items() if name in left})
        self.unmask()
        self.net, self.layers = small, ()
        self.train(training)

    def _inputs(self, batch: Batch) -> Batch:
        """What the model takes of a batch, where the model is: the task's training batches lie on the CPU."""
        device = next(self.net.parameters()).device
        return {name: tensor.to(device) for name, tensor in self.task.inputs(batch).items()}

    def _cost(self) -> Cost:
        shape = shape_of(self.net)
        if self.budget.cost == "latency":
            return self._latency(shape)
        if self.budget.cost == "params":
            return ParamsCost(shape, self.merges)
        return MacsCost(shape, self.budget.length, self.merges)

    def _latency(self, shape: ModelShape) -> LatencyCost:
        """The first process measures, the others take its table."""
        trainer, conditions = self._trainer, self.budget.latency
        device = next(self.net.parameters()).device if trainer is None else trainer.strategy.root_device
        cache = cache_folder("latency")
        dtype = DTYPES[conditions["dtype"]]
        measure = functools.partial(
            cached_table, cache, shape, conditions["rows"], self.budget.length, device, dtype, conditions["repeats"]
        )
        if trainer is None:
            return LatencyCost(shape, measure())
        if trainer.is_global_zero:
            measure()
        trainer.strategy.barrier()
        return LatencyCost(shape, measure())


def _logits(net: nn.Module) -> Callable[[Any], Tensor]:
    return lambda batch: net(**batch).logits
