"""What the adapter methods share: updates of frozen linears, what else is trained, and how updates are merged.

The body of the model is frozen; the updates learn, and the task's classifier. `merge` says what the
delivered model is:

    masked                   W' = S1 o (W + delta): the zeros of the model's masks hold, one plain model
    dense                    W' = W o S1 + delta: exact, and dense wherever there was an update
    sparse_by_construction   as masked, but training has seen S1 o (W + delta) ever since the mask: exact and sparse
    keep                     model/ holds W o S1 under W's names, and U, V, S2 as `<linear>.updates.*` in the same file.
                             `models.load.reload` and `model=from_run` load all of it; `from_pretrained` alone loads
                             W, and names the others as unexpected

The results have the scores before merging too.

A method overrides `begin`, in addition to the hooks of FineTune:

    begin()   runs once, when the updates are there
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from keepfrac.adapters.layer import scale_of
from keepfrac.adapters.peft_folder import read_peft, start_from
from keepfrac.adapters.selection import SELECTORS, select_positions
from keepfrac.adapters.surgery import Target, adapted, attach, freeze_but, merge, part_of_weight, trainable
from keepfrac.errors import UserError
from keepfrac.models.anatomy import head_of
from keepfrac.models.targets import targets_of
from keepfrac.prune.masks import Masks
from keepfrac.prune.schedules import warmup_then_linear
from keepfrac.settings import choice, count, flag, number, settings, share, text, texts
from keepfrac.training.finetune import Batch, FineTune

MERGES = ("masked", "dense", "keep", "sparse_by_construction")


@settings
class LoraSettings(FineTune.Settings):
    """Low-rank updates of some linears."""

    targets: Sequence[str] = texts(
        "what has updates: roles (query, key, value, attention_output, ffn_in, ffn_out), or regular expressions of"
        " whole module paths",
        example="[query,value]",
    )
    rank: int = count("rank r of every update, up to the smaller side of each weight")
    alpha: float = number("the updates count alpha / r", ends="(]")
    dropout: float = share("dropout rate of the updates' input", "[)")
    train_head: bool = flag("whether the task's classifier learns too")


@settings
class AdapterSettings(LoraSettings):
    """Updates of our own, and what they are merged into."""

    adapter: str | None = text("a PEFT LoRA folder to start from; null: none", null=True)
    merge: str = choice("what is delivered, see `training.adapter_tuning`", *MERGES)

    def check(self) -> None:
        super().check()
        if self.dropout and self.merge == "sparse_by_construction":
            raise self.error("dropout", "must be 0 with merge=sparse_by_construction: W and its update have one input")


@settings
class SparseAdapterSettings(AdapterSettings):
    """The same, with S2 in addition to the low-rank updates."""

    sparse: int = count("N, values of S2 in each updated weight; 0: no S2", least=0)
    selector: str = choice("how the places of S2's values are chosen", *SELECTORS)
    selector_rank: int | None = count(
        "rank of the approximation whose residual grebsmo and svd_residual look at; null: `rank`. The DSEE code's"
        " grebsmo grew to 496",
        null=True,
    )
    selector_batches: int = count("training batches whose squared gradients are summed, for gradient")
    selector_seed: int = count("seed of the random places", least=0)


class Adapters:
    """The updates of a method's model, from their making to their merge.

    Args:
        settings: what they are; of SparseAdapterSettings: with S2.
    """

    def __init__(self, settings: AdapterSettings):
        self.settings = settings

    def attach(self, module: FineTune, batches: Iterable[Batch]) -> None:
        """Gives the model its updates, unless it came with them, and freezes the rest.

        Raises:
            UserError: something cannot be adapted, or the updates that the model came with are others.
        """
        net = module.net
        if adapted(net):
            self._check_present(net)
        else:
            own, targets = self.settings, targets_of(net, self.settings.targets)
            positions = self._positions(module, targets, batches)
            scale = scale_of(own.alpha, own.rank)
            attach(net, targets, own.rank, scale=scale, dropout=own.dropout, positions=positions)
            if own.adapter:
                start_from(net, read_peft(Path(own.adapter)))
        if self.settings.merge == "sparse_by_construction":
            for one in adapted(net).values():
                one.reserve_mask()
        self.freeze(module)

    def freeze(self, module: FineTune) -> None:
        """Freezes all but the updates, and the head where the task brings a new one."""
        new_head = self.settings.train_head and module.task.has_new_head
        freeze_but(module.net, head_of(module.net) if new_head else ())

    def apply_mask_in_forward(self, net: nn.Module, masks: Mapping[str, Tensor]) -> None:
        """Makes training see the masks' zeros in the updated weights, with merge=sparse_by_construction."""
        if self.settings.merge == "sparse_by_construction":
            for path, one in adapted(net).items():
                one.constrain(masks.get(f"{path}.weight"))

    def merge_for_export(self, module: FineTune) -> dict[str, float]:
        """Brings the model into the form that `merge` says; returns the scores that it had before."""
        if self.settings.merge == "keep":
            return {}
        scores = scores_of(module)
        masks = {} if module.masks is None else dict(module.masks.items())
        left = merge(module.net, masks, keep_zeros=self.settings.merge != "dense")
        module.masks = Masks(left) if left else None
        return {f"unmerged_{name.replace('/', '_')}": value for name, value in scores.items()}

    def _check_present(self, net: nn.Module) -> None:
        own, ranks = self.settings, {part.rank for one in adapted(net).values() for part in one.parts()}
        named = {target.path for target in targets_of(net, self.settings.targets)}
        if self.settings.adapter:
            raise UserError("method.adapter: the model of model.run has updates of its own already")
        if named != set(adapted(net)) or max(ranks) != self.settings.rank:
            raise UserError(
                f"the model of model.run has updates of rank {max(ranks)} on {len(adapted(net))} linears: go on with"
                f" the same method.rank (now {own.rank}) and method.targets (now {', '.join(own.targets)})"
            )

    def _positions(
        self, module: FineTune, targets: Sequence[Target], batches: Iterable[Batch]
    ) -> dict[Target, Tensor] | None:
        own, found = self.settings, {}
        if not isinstance(own, SparseAdapterSettings) or not own.sparse:
            return None
        squares = gradient_squares(module, targets, batches, own.selector_batches) if own.selector == "gradient" else {}
        for index, target in enumerate(targets):
            weight = part_of_weight(module.net.get_submodule(target.path), target)
            generator = torch.Generator().manual_seed(1_000_003 * own.selector_seed + index)
            try:
                found[target] = select_positions(
                    weight,
                    own.sparse,
                    own.selector,
                    rank=own.selector_rank or own.rank,
                    generator=generator,
                    squares=squares.get(target),
                )
            except UserError as error:
                raise UserError(f"method.sparse: {target.path}: {error}") from error
        return found


class AdapterTuning(FineTune):
    """Updates of frozen linears; the arguments are those of FineTune."""

    class Settings(AdapterSettings):
        """Those of updates without S2."""

    settings: AdapterSettings

    def __init__(self, net, task, loop, settings: AdapterSettings):
        super().__init__(net, task, loop, settings)
        self.adapters = Adapters(settings)
        self.prepared = False
        self.account: dict[str, float] = {}

    def prepare(self, batches: Iterable[Batch]) -> None:
        if not self.prepared:
            self.adapters.attach(self, batches)
            self.prepared, self.account = True, trained(self)
            self.begin()

    def begin(self) -> None:
        """Runs once, when the updates are there."""
        if self.settings.merge == "sparse_by_construction":
            if self.masks is None:
                raise UserError("method.merge=sparse_by_construction: this model has no masks, so no zeros to hold")
            self.adapters.apply_mask_in_forward(self.net, dict(self.masks.items()))

    def finish(self, batches: Iterable[Batch]) -> None:
        self.prepare(batches)  # a run without training has not been prepared
        self.account |= trained(self)
        self.account |= self.adapters.merge_for_export(self)

    def kept(self) -> dict:
        return {**super().kept(), **self.account, "merge": self.settings.merge}


def warm_restart(progress: float, restart_at: float, warmup: float) -> float:
    """Returns the factor of the rate: the loop's schedule up to progress `restart_at`, and once more from there."""
    if progress < restart_at:
        return warmup_then_linear(progress / restart_at, warmup)
    return warmup_then_linear((progress - restart_at) / (1 - restart_at), warmup)


def gradient_squares(
    module: FineTune, targets: Sequence[Target], batches: Iterable[Batch], count: int
) -> dict[Target, Tensor]:
    """Returns the summed squares of the task's gradient at the targets' weights, over the first training batches.

    Source: the mask of RoSA (Nikdan et al. 2024, section 3.2).
    """
    net, device = module.net, next(module.net.parameters()).device
    weights = {path: net.get_parameter(f"{path}.weight") for path in {target.path for target in targets}}
    sums = {path: torch.zeros_like(weight) for path, weight in weights.items()}
    mode = net.training
    net.eval()  # no dropout: the positions depend on the data alone
    for _, batch in zip(range(count), batches, strict=False):
        loss, _ = module.loss_of(module.task.to_device(batch, device))
        for path, gradient in zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True):
            sums[path] += gradient.square()
    net.train(mode)
    found = {}
    for target in targets:
        total = sums[target.path]
        oriented = total if isinstance(net.get_submodule(target.path), nn.Linear) else total.t()
        found[target] = oriented[target.start : target.start + (target.size or len(oriented))]
    return found


def trained(module: FineTune) -> dict[str, float]:
    """Returns how much learns: parameters, their share, bytes of the gradients and of the optimizer's state."""
    count, whole = trainable(module.net), sum(p.numel() for p in module.net.parameters())
    found = {"trained_params": count, "trained_frac": count / whole}
    optimizers = module._trainer.optimizers if module._trainer is not None else []
    states = [v for o in optimizers for state in o.state.values() for v in state.values() if isinstance(v, Tensor)]
    if states:
        found["gradient_bytes"] = sum(p.nbytes for p in module.parameters() if p.requires_grad)
        found["optimizer_bytes"] = sum(value.nbytes for value in states)
    return found


@torch.no_grad()
def scores_of(module: FineTune) -> dict[str, float]:
    """Returns the scores of the model as it stands, on validation and test, as the delivered one's are made.

    Empty where the run has no training: there is no trainer then that knows the precision.
    """
    trainer = module._trainer
    found: dict[str, float] = {}
    if trainer is None or not module.loop.total_steps:
        return {}
    module.eval()
    loaders = {"val": module.task.val_dataloader(), "test": module.task.test_dataloader()}
    for split, loader in loaders.items():
        module.start_scores(split)
        for index, batch in enumerate(loader):
            batch = module.task.to_device(batch, module.device)
            with trainer.precision_plugin.val_step_context():
                module.validation_step(batch, index)
        scores = module.val_metrics.compute()
        found |= {f"{split}/{name}": float(value) for name, value in scores.items()}
    module.start_scores("val")
    return found
