"""LoRA-sparse (DSEE): y = (W o S1) x + (alpha / r) (U V + S2) x, with W frozen, and merged without losing its zeros.

U V is a low-rank update and S2 N trained values at chosen positions. S1 keeps a share of the frozen weights: until
`settled_at` the updates are tuned on the whole model, then S1 is chosen and stays, the learning rate restarts, and the
updates are tuned to the pruned model. With schedule=cubic the share falls on the way there. S1 is chosen by |W|, by the
size of the update where there is one, or by that of the sum; pooler and classifier stay whole.

Both stages are one fit; as two runs: method=lora_sparse keep_frac=1 merge=keep, then model=from_run settled_at=0.
A repair after a masked merge is a further run (model=from_run), whose masks hold whatever the method.

keep_frac is the share of the weights of the encoder's linears that S1 keeps. What is reported as achieved is counted
in the delivered model: masked and sparse_by_construction lose no zero, dense does (0.5 becomes 0.583 with query
and value updated).

Source: Chen et al. 2023 (DSEE). Departures: S2 has N values in place of a matrix and a mask, and always exactly N; the
scale alpha / r counts for U V and S2 in scores too; S1 may fall along a cubic ramp.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from keepfrac.adapters.masks import SCOPES, SCORES, choose_s1
from keepfrac.adapters.surgery import adapted
from keepfrac.errors import UserError
from keepfrac.models.cut import shape_of
from keepfrac.models.targets import linears_of
from keepfrac.prune.masks import Masks
from keepfrac.prune.schedules import cubic, ramp
from keepfrac.settings import choice, count, flag, settings, share
from keepfrac.training.adapter_tuning import AdapterTuning, SparseAdapterSettings, warm_restart
from keepfrac.training.finetune import Batch


class LoraSparse(AdapterTuning):
    """Low-rank and sparse updates of frozen, pruned linears."""

    @settings
    class Settings(SparseAdapterSettings):
        score: str = choice("of a weight in S1: |W|, the size of its update if it has one, or of the sum", *SCORES)
        scope: str = choice("where S1's share holds; groups: of the linears with an update, and of the rest", *SCOPES)
        pooler: bool = flag("whether S1 holds for the pooler too, as in the original's code")
        schedule: str = choice("how S1's share falls", "one_shot", "cubic")
        ramp_from: float = share("progress at which a cubic share begins to fall", "[)")
        updates: int = count("how often a cubic share falls on the way")
        settled_at: float = share("progress from which S1 is fixed and the learning rate restarts", "[)")

        def check(self) -> None:
            super().check()
            if self.schedule == "cubic" and self.ramp_from >= self.settled_at:
                raise UserError(
                    f"method.ramp_from={self.ramp_from}, settled_at={self.settled_at}: a cubic schedule falls from the"
                    " one to the other, so they must rise"
                )

    settings: Settings

    def __init__(self, net, task, loop, settings: Settings):
        super().__init__(net, task, loop, settings)
        self.settled_at = settings.settled_at if self.keep_frac < 1 else 0.0
        self.s1: Masks | None = None
        self.paths: list[str] = []
        self.level, self.settled = 0, False
        self.nonzero: float | None = None

    # hooks -----------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        if self.keep_frac == 1:
            if self.settings.merge == "sparse_by_construction":
                super().begin()
            return
        self.paths = linears_of(self.net, self.settings.pooler)
        present = {} if self.masks is None else dict(self.masks.items())
        names = [f"{path}.weight" for path in self.paths]
        whole = {name: torch.ones_like(self.net.get_parameter(name), dtype=torch.bool) for name in names}
        self.s1 = Masks({name: present.get(name, mask) for name, mask in whole.items()})
        self._choose(self.keep_frac)  # an error comes before training
        if self.settled_at == 0:
            self._settle()

    def param_groups(self) -> list[dict]:
        return [{**group, "schedule": self._rate} for group in super().param_groups()]

    def after_step(self) -> None:
        if self.s1 is None or self.settled:
            return
        done = self.progress_with_step
        if done >= self.settled_at:
            self._settle()
        elif self.settings.schedule == "cubic":
            level = int(self.settings.updates * ramp(done, self.settings.ramp_from, self.settled_at))
            if level > self.level and not self._blind():
                self.level = level
                self._prune(cubic(done, self.keep_frac, start=self.settings.ramp_from, end=self.settled_at))

    def finish(self, batches: Iterable[Batch]) -> None:
        self.prepare(batches)
        if self.s1 is not None:
            if not self.settled:
                self._settle()
            present = {} if self.masks is None else dict(self.masks.items())
            self.masks, self.s1 = Masks(present | dict(self.s1.items())), None
        super().finish(batches)
        if self.paths:
            self.nonzero = self._share(self._matrices())

    def kept(self) -> dict:
        found = super().kept()
        if self.keep_frac == 1:
            return found
        achieved = 1.0
        if self.s1 is not None:
            kept, whole = self.s1.counts()
            achieved = kept / whole
        achieved = achieved if self.nonzero is None else self.nonzero
        return {
            **found,
            "achieved": achieved,
            "unit": f"weights of the {shape_of(self.net).kind}'s linears",
            "of": "frozen weights",
        }

    def get_extra_state(self) -> dict:
        return {"level": self.level, "settled": self.settled}

    def set_extra_state(self, state: dict) -> None:
        self.level, self.settled = state["level"], state["settled"]
        if self.settled or self.level:
            self.adapters.apply_mask_in_forward(self.net, {})  # the masks themselves come with the weights

    # -----------------------------------------------------------------------------------------------------------------

    def _rate(self, progress: float) -> float:
        return warm_restart(progress, self.settled_at, self.loop.warmup)

    def _choose(self, share: float) -> dict[str, Tensor]:
        assert self.s1 is not None
        own, present = self.settings, dict(self.s1.items())
        return choose_s1(self.net, self.paths, share, score=own.score, scope=own.scope, present=present)

    def _prune(self, share: float) -> None:
        assert self.s1 is not None
        masks = self._choose(share)
        self.s1.update(masks)
        self.s1.apply_to(self.net)  # once: frozen weights stay at zero
        if self.ema is not None:
            self.ema.prune(masks)  # else they would keep the old values of pruned weights
        self.adapters.apply_mask_in_forward(self.net, masks)

    def _settle(self) -> None:
        if self._blind():
            raise UserError(
                f"method.score=delta with settled_at={self.settled_at}: all updates are still zero where S1 is chosen;"
                " train them first, or use score=w"
            )
        self._prune(self.keep_frac)
        self.settled = True

    def _blind(self) -> bool:
        """Whether the score sees nothing: the first steps of a warm-up leave updates at zero."""
        return self.settings.score == "delta" and not any(own.delta().any() for own in adapted(self.net).values())

    def _matrices(self) -> list[Tensor]:
        return [self.net.get_parameter(f"{path}.weight") for path in self.paths]

    @staticmethod
    def _share(weights: list[Tensor]) -> float:
        return sum(int(w.count_nonzero()) for w in weights) / sum(w.numel() for w in weights)
