"""Pruner: what all structured pruning methods share, from the budget to the cut model.

Once, at `settled_at`, the structure is chosen. From then on the other units are masked, and the rest of the fit
recovers. `finish` folds what scales the kept units into the weights, slices the others away, and holds the cut model
against its masked self on real batches. With settled_at 0 the cut comes before training, which then is as fast as the
small model is.

A method overrides these, beside the hooks of FineTune:

    choose()            the structure that stays; UnitPruner takes the units of the highest scores within the budget
    scores()            of a UnitPruner: how much each unit matters
    mask(structure)     makes the model compute what the cut one will
    unmask()            takes the masks off
    values()            what is folded into the kept weights; None: they stay as they are
    expected()          the counts that the model has, or will have once it is cut
    cost_of(shape)      what keep_frac is a share of
    fix_structure()     chooses and masks; of a method that does so in several rounds, all that are left
    cut_units(batches)  slices away what does not stay
    merges              whether factors at or above break-even are delivered as one dense linear

keep_frac is a share of the dense original's cost, also where the model was cut before.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from keepfrac.models.anatomy import Layer
from keepfrac.models.cut import counts_of, cut, encoder_layers, largest_difference, shape_of
from keepfrac.models.slicing import slice_tensors
from keepfrac.prune.accounting import kept
from keepfrac.prune.attach import FixedGates, attach, gates_of
from keepfrac.prune.budget import FAMILIES, UnitScores
from keepfrac.prune.cost import Cost, LatencyCost, MacsCost, ParamsCost
from keepfrac.prune.latency import DTYPES, cached_table
from keepfrac.prune.masks import Masks
from keepfrac.prune.select import SCOPES, Limits, Scope, select
from keepfrac.prune.structure import LayerCounts, ModelShape, Structure
from keepfrac.settings import choice, count, flag, mapping, one_of, record, settings, share, whole
from keepfrac.storage.cache import cache_folder
from keepfrac.training.finetune import Batch, FineTune

TOLERANCE = 1e-4
BATCHES = 4


class Pruner(FineTune):
    """Fine-tuning in which a share of the encoder's units stays; the arguments are those of FineTune."""

    @settings
    class Settings(FineTune.Settings):
        length: int = count("tokens of the sentence for which MACs and latency are counted")
        settled_at: float = share("progress at which the structure is chosen; 0: the model is cut before training")

    settings: Settings

    merges = True
    """Whether factors at or above break-even are delivered as one dense linear, and counted so."""

    def __init__(self, net, task, loop, settings: Settings):
        super().__init__(net, task, loop, settings)
        self.settled_at = settings.settled_at
        self.cost: Cost | None = None
        self.layers: Sequence[Layer] = ()
        self.counts: list[LayerCounts] = []
        self.structure: Structure | None = None
        self.handles: list[RemovableHandle] = []

    # what a method gives ---------------------------------------------------------------------------------------------

    def choose(self) -> Structure:
        """Returns what stays.

        Raises:
            UserError: the budget cannot be reached; the message says the range that can.
        """
        raise NotImplementedError

    def cost_of(self, shape: ModelShape) -> Cost:
        """Returns what keep_frac is a share of."""
        return MacsCost(shape, self.settings.length, self.merges)

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
            self.cost = self.cost_of(shape_of(self.net))
            self.layers, self.counts = encoder_layers(self.net), counts_of(self.net)
            if self.keep_frac < 1:
                self.choose()  # an error comes before training
            if self.keep_frac < 1 and self.settled_at == 0:
                self.fix_structure()
                self.cut_units(batches)

    def after_step(self) -> None:
        if self.keep_frac < 1 and self.structure is None and self.progress_with_step >= self.settled_at:
            self.fix_structure()

    def finish(self, batches: Iterable[Batch]) -> None:
        self.prepare(batches)  # a run without training has not been prepared
        if self.keep_frac == 1 or not self.layers:
            return
        if self.structure is None:
            self.fix_structure()
        self.cut_units(batches)

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

    def fix_structure(self) -> None:
        """Chooses what stays, and masks the rest."""
        self.structure = self.choose()
        self.mask(self.structure)

    def cut_units(self, batches: Iterable[Batch]) -> None:
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
        return self.task.to_device(self.task.inputs(batch), device)


class CostPruner(Pruner):
    """A pruner whose keep_frac is a share of one of several costs."""

    @settings
    class Settings(Pruner.Settings):
        cost: str = choice(
            "what keep_frac is a share of: weights of the encoder's linears, MACs, or latency on this device",
            *("params", "macs", "latency"),
        )
        latency: Mapping = record(
            "how the latency is measured: sentences, their precision, and passes of which the median counts",
            rows=whole(1),
            dtype=one_of(*DTYPES),
            repeats=whole(1),
        )

    settings: Settings

    def cost_of(self, shape: ModelShape) -> Cost:
        if self.settings.cost == "latency":
            return self._latency(shape)
        return ParamsCost(shape, self.merges) if self.settings.cost == "params" else super().cost_of(shape)

    def _latency(self, shape: ModelShape) -> LatencyCost:
        """The first process measures, the others take its table."""
        trainer, conditions = self._trainer, self.settings.latency
        device = next(self.net.parameters()).device if trainer is None else trainer.strategy.root_device
        cache = cache_folder("latency")
        measure = functools.partial(
            cached_table,
            cache,
            shape,
            batch=conditions["rows"],
            length=self.settings.length,
            device=device,
            dtype=DTYPES[conditions["dtype"]],
            repeats=conditions["repeats"],
        )
        if trainer is None:
            return LatencyCost(shape, measure())
        if trainer.is_global_zero:
            measure()
        trainer.strategy.barrier()
        return LatencyCost(shape, measure())


class UnitPruner(CostPruner):
    """A pruner in which the units of the highest scores stay whose exact cost is the budget."""

    @settings
    class Settings(CostPruner.Settings):
        scope: Scope = choice("among which units the budget is shared out", *SCOPES)
        align: Mapping[str, int] = mapping("by family, kept counts are multiples of this", whole(1), *FAMILIES)
        floor: Mapping[str, int] = mapping(
            "by family, the least that a sub-layer which stays keeps", whole(1), *FAMILIES
        )
        allow_empty: bool = flag("whether a sub-layer may lose all its units")
        drop_empty: bool = flag("whether a layer without units goes whole, with its norms")

        @property
        def limits(self) -> Limits:
            """What a selection must respect."""
            return Limits(align=self.align, floor=self.floor, allow_empty=self.allow_empty)

    settings: Settings

    def scores(self) -> UnitScores:
        """Returns how much each unit matters."""
        raise NotImplementedError

    def choose(self) -> Structure:
        assert self.cost is not None
        own = self.settings
        chosen = select(self.scores(), self.cost, self.keep_frac, limits=own.limits, scope=own.scope)
        return chosen.without_empty_layers() if own.drop_empty else chosen


def _logits(net: nn.Module) -> Callable[[Any], Tensor]:
    return lambda batch: net(**batch)[0]  # logits, or an encoder's hidden states
