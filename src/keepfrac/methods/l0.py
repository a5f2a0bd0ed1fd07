"""L0 gates: units of the encoder are multiplied by random gates, trained until a wanted share of the cost is left.

Each unit has one hard-concrete gate z in [0, 1] with P(z > 0) = sigmoid(a - beta log(-gamma / zeta)); `families` says
which units: heads, neurons, attention and ffn (sub-layers), layers, ranks. The expected cost E[C] follows from these
probabilities, so it can be held at a target t that falls from 1 (or what is there, of a model that was cut
before) to keep_frac:

    loss + lambda_1 v + lambda_2 v^2,   v = E[C] / C(dense) - t(progress)

descent on weights and gates, ascent on both lambdas. Up to `prefinetune` the gates are off: plain fine-tuning. At
`settled_at` the units most likely to be open that fit the exact budget stay; their gates keep their value until they
are folded into the weights, the others are 0, and the weights recover. Afterwards the model is cut.

With ranks among the families each linear is first held as two factors W = Q diag(z) P, by a thin singular value
decomposition, whitened by the activations of some batches where `whiten` says so; linears that end at or above the
break-even rank m n / (m + n) are multiplied out again, exactly, unless `keep_factors`.

keep_frac is the share of the dense encoder's cost (`cost`) that stays. keep_frac 1 is dense fine-tuning, without gates.

Sources: Louizos et al. 2018 (hard concrete); Wang, Wohlwend and Lei 2020 (FLOP: rank gates, Lagrangian); Xia, Zhong and
Chen 2022 (CoFi: nested families). Departures: the cost counts against the original dense model (FLOP for BERT counts
against a full decomposition, 2.75 times as large); gates open at one probability in all families; the final choice is
by sorting to the exact budget, not by a threshold; rates are constant or fall as asked, never by accident; one sample
of the gates per optimizer step.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from keepfrac.errors import UserError
from keepfrac.models.cut import counts_of, encoder_layers, shape_of
from keepfrac.prune.attach import FixedGates, rank_of
from keepfrac.prune.budget import UnitScores
from keepfrac.prune.constraint import AugmentedLagrangian, ProportionalIntegral
from keepfrac.prune.cost import fraction
from keepfrac.prune.factorize import factorize_, input_moments
from keepfrac.prune.gates import FAMILIES, Gates
from keepfrac.prune.schedules import RATES, linear
from keepfrac.prune.structure import LayerCounts, Structure
from keepfrac.settings import choice, count, flag, in_range, number, record, rising, settings, share, some_of
from keepfrac.training.finetune import Batch
from keepfrac.training.structured_pruning import UnitPruner

COARSE = {"attention": {"heads"}, "ffn": {"neurons"}, "layers": {"heads", "neurons"}}
"""Families whose gates are not on single units, and those units."""


class L0Prune(UnitPruner):
    """Structured pruning by L0 gates under an augmented Lagrangian."""

    @settings
    class Settings(UnitPruner.Settings):
        families: Sequence[str] = some_of("what has gates", *FAMILIES)
        rank: int | None = count("rank of each factorised linear at the start; null: the break-even one", null=True)
        whiten: int = count("training batches on which a factorisation measures activations; 0: none", least=0)
        keep_factors: bool = flag(
            "whether a linear stays two factors also where one dense linear would be smaller, as in the original"
        )
        prefinetune: float = share("progress until which the gates are off")
        target_warmup: float = share("progress at which the target has fallen to keep_frac")
        open_probability: float = share("probability that a gate is open, at the start", "()")
        beta: float = number("temperature of the gates", ends="()")
        limit: float = number("bound of |log alpha|", ends="()")
        gate_lr: float = number("peak learning rate of the gates", ends="()")
        multiplier_lr: float = number("peak learning rate of the Lagrangian's multipliers", ends="()")
        gate_schedule: str = choice("how both rates change; inverse_root is Noam's", *RATES)
        gate_warmup: float = share("share of training in which both rates rise", "[)")
        anti_windup: bool = flag("whether lambda_1 restarts at 0 when the share falls below its target")
        controller: Mapping[str, float] | None = record(
            "gains of a proportional-integral controller in place of the multipliers; null: the Lagrangian",
            proportional=in_range(0),
            integral=in_range(0),
            quadratic=in_range(0),
            limit=in_range(0, ends="(]"),
            null=True,
        )
        l2: float | None = number("weight of the l2 loss on the encoder's linears: half the sum of squares", null=True)
        train_weights: bool = flag("whether the model itself is trained; false: the gates alone, as in the original")
        gate_seed: int = count("seed of the gates' noise", least=0)

        def check(self) -> None:
            super().check()
            self._check_families()
            self._check_times()
            if self.controller and self.anti_windup:
                raise self.error("anti_windup", "is for the multipliers: set method.controller=null beside it")

        def _check_families(self) -> None:
            families = self.families
            whole = [family for family, units in COARSE.items() if family in families and units - set(families)]
            if whole and self.scope != "global":
                raise self.error(
                    "scope",
                    f"{whole[0]} that go whole never fit their own share; use method.scope=global, or put"
                    f" {' and '.join(sorted(COARSE[whole[0]]))} into method.families={list(families)} too",
                )
            if "ranks" not in families and (self.rank or self.whiten or self.keep_factors):
                raise UserError("method.rank, method.whiten and method.keep_factors are for method.families with ranks")
            if "ranks" in families and self.cost == "latency":
                raise self.error(
                    "cost", "knows heads and neurons only: use params or macs with method.families with ranks"
                )

        def _check_times(self) -> None:
            rising(self, "prefinetune", "target_warmup", "settled_at")
            if self.prefinetune == self.target_warmup:
                raise self.error("prefinetune", f"must rise to method.target_warmup={self.target_warmup}")
            if not self.train_weights and self.settled_at < 1:
                raise self.error("train_weights", "leaves nothing to train after settled_at: set settled_at=1")
            if self.gate_schedule == "inverse_root" and self.gate_warmup == 0:
                raise self.error("gate_warmup", "must be above 0: gate_schedule=inverse_root leaves every rate at 0")

    settings: Settings

    def __init__(self, net, task, loop, settings: Settings):
        super().__init__(net, task, loop, settings)
        self.merges = not settings.keep_factors
        gains = settings.controller
        self.constraint = ProportionalIntegral(**gains) if gains else AugmentedLagrangian(settings.anti_windup)
        self.gates: Gates | None = None
        self.gated = False
        self.began = 1.0
        self.violation: Tensor | None = None
        if self.keep_frac < 1 and not loop.total_steps:
            raise UserError(f"method={self.name} with epochs=0: gates must be trained before they can choose")

    # hooks -----------------------------------------------------------------------------------------------------------

    def prepare(self, batches: Iterable[Batch]) -> None:
        first = self.cost is None and self.keep_frac < 1
        if first:
            came = counts_of(self.net)
            if "ranks" in self.settings.families:
                self._factorize(batches)
            own = self.settings
            self.gates = Gates(
                counts_of(self.net),
                own.families,
                open_probability=own.open_probability,
                beta=own.beta,
                limit=own.limit,
                seed=own.gate_seed,
            )
            self.net.requires_grad_(self.settings.train_weights)
        super().prepare(batches)
        if first and self.cost is not None and self.gates is not None:
            self.began = max(float(fraction(self.cost, counts)) for counts in (came, self.gates.counts))
        if self.settings.prefinetune == 0 and self.structure is None:
            self._gate()

    def param_groups(self) -> list[dict]:
        groups = super().param_groups()
        if self.gates is None:
            return groups
        own = {"weight_decay": 0.0, "clip": None, "schedule": self._rate}
        return [
            *groups,
            {"params": list(self.gates.parameters()), "lr": self.settings.gate_lr, **own},
            {"params": list(self.constraint.parameters()), "lr": self.settings.multiplier_lr, "maximize": True, **own},
        ]

    def losses(self, batch: Batch, outputs) -> dict[str, Tensor]:
        if self.gates is None:
            return {}
        terms = {"lagrangian": self._lagrangian(self.gates)}
        if self.settings.l2 and self.settings.train_weights:
            terms["l2"] = self.settings.l2 * torch.stack([w.square().sum() / 2 for w in self._weights()]).sum()
        return terms

    def after_step(self) -> None:
        if self.gates is None:
            return
        if self.gated and self.structure is None:
            assert self.violation is not None
            for multiplier in self.constraint.after_step(self.violation.item()):
                self.trainer.optimizers[0].state[multiplier]["exp_avg"].zero_()
            self.gates.clamp_()
            self.gates.draw()
        super().after_step()
        if not self.gated and self.structure is None and self.progress_with_step >= self.settings.prefinetune:
            self._gate()
            for parameter in [*self.gates.parameters(), *self.constraint.parameters()]:
                self.trainer.optimizers[0].state.pop(parameter, None)  # averages of the gradients 0 until now

    def metrics_to_log(self) -> dict[str, Tensor | float]:
        if self.gates is None or self.cost is None:
            return {}
        factor = self._rate(self.progress)
        rates = {"gates": factor * self.settings.gate_lr, "multipliers": factor * self.settings.multiplier_lr}
        rates["weights"] = self.loop.lr * self.schedule(self.progress) if self.settings.train_weights else 0.0
        return {
            "kept/expected": torch.as_tensor(fraction(self.cost, self.expected())).float(),
            "kept/target": self.target,
            **{f"loss/{name}": value for name, value in self.constraint.values().items()},
            **{f"loss/lr_{name}": rate for name, rate in rates.items()},
        }

    def get_extra_state(self) -> dict:
        return {"structure": self.structure.to_json() if self.structure else None, "gated": self.gated}

    def set_extra_state(self, state: dict) -> None:
        self.structure = Structure.from_json(state["structure"]) if state["structure"] else None
        if state["gated"] and not self.gated:
            self._gate()

    # the choice ------------------------------------------------------------------------------------------------------

    @property
    def target(self) -> float:
        """The share of the dense cost that is asked for at this step, from what the model had on (1, or cut before)."""
        start, end = self.settings.prefinetune, self.settings.target_warmup
        return linear(self.progress, self.keep_frac, start=start, end=end, first=self.began)

    def scores(self) -> UnitScores:
        assert self.gates is not None
        return self.gates.scores()

    def expected(self) -> list[LayerCounts]:
        if self.gates is None or self.structure is not None or not self.gated:
            return super().expected()
        with torch.no_grad():
            return self.gates.expected()

    def values(self) -> FixedGates | None:
        return None if self.gates is None else self.gates.fixed()

    def mask(self, structure: Structure) -> None:
        assert self.gates is not None
        self.gates.freeze(structure)
        if not self.gated:
            self._gate()

    def unmask(self) -> None:
        if self.gates is not None:
            self.gates.detach()

    # -----------------------------------------------------------------------------------------------------------------

    def _gate(self) -> None:
        """Puts the gates onto the model."""
        if self.gates is not None:
            self.gates.attach(self.net, self.layers)
            self.gated = True

    def _lagrangian(self, gates: Gates) -> Tensor:
        """The term that holds the expected cost at its target, while gates are trained."""
        if not self.gated or self.structure is not None:
            # 0, with a gradient of 0: several processes wait for one of every parameter
            return torch.stack([p.sum() for p in [*gates.parameters(), *self.constraint.parameters()]]).sum() * 0.0
        assert self.cost is not None
        self.violation = torch.as_tensor(fraction(self.cost, gates.expected())) - self.target
        return self.constraint.loss(self.violation)

    def _rate(self, progress: float) -> float:
        """The factor of the gates' and multipliers' rates, which run from prefinetune to settled_at alone."""
        if not self.settings.prefinetune <= progress < self.settled_at:
            return 0.0
        return RATES[self.settings.gate_schedule](progress, self.settings.gate_warmup)

    def _weights(self) -> list[Tensor]:
        modules = [self.net.get_submodule(path) for layer in self.layers for path in layer.linears]
        return [weight for module in modules for weight in module.parameters() if weight.ndim == 2]

    def _factorize(self, batches: Iterable[Batch]) -> None:
        """Holds every linear of the encoder as two factors, unless an earlier run left it so."""
        shape = shape_of(self.net)
        if shape.causal or shape.gated:
            only = "" if shape.causal else " whose feed-forward blocks have no gate"
            raise UserError(f"gates on ranks are for encoders{only}: leave ranks out of method.families")
        paths = [path for layer in encoder_layers(self.net) for path in layer.linears]
        paths = [path for path in paths if rank_of(self.net.get_submodule(path)) is None]
        masked = {name for name, _ in self.masks.items()} if self.masks is not None else set()
        if masked & {f"{path}.weight" for path in paths}:
            raise UserError("gates on ranks would fill what this model's masks keep at zero: leave ranks out")
        if paths:
            moments = self._moments(paths, batches) if self.settings.whiten else None
            factorize_(self.net, paths, self.settings.rank, moments)

    def _moments(self, paths: list[str], batches: Iterable[Batch]) -> dict[str, Tensor]:
        self.net.eval()
        some = itertools.islice(batches, self.settings.whiten)
        moments = input_moments(self.net, paths, some, self._run)
        self.net.train()
        return moments

    def _run(self, batch: Any) -> object:
        return self.net(**self._inputs(batch))
