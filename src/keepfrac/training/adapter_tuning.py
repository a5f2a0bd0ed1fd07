"""What the adapter methods share: updates on frozen linears, what is trained beside them, and how they are merged.

The body of the model is frozen; the updates learn, and the task's classifier. `merge` says what the
delivered model is:

    masked                   W' = S1 o (W + delta): the zeros of the model's masks hold, one plain model
    dense                    W' = W o S1 + delta: exact, and dense wherever there was an update
    sparse_by_construction   as masked, but training has seen S1 o (W + delta) ever since the mask: exact and sparse
    keep                     model/ holds W o S1 under W's names, and U, V, S2 as `<linear>.updates.*` in the same file.
                             `models.load.reload` and `model=from_run` load all of it; `from_pretrained` alone loads
                             W, and names the others as unexpected

The scores of the model before it was merged stand in the results beside those of the delivered one.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from keepfrac.adapters.files import read_peft, start_from
from keepfrac.adapters.layer import scale_of
from keepfrac.adapters.selection import check_selector, select_positions
from keepfrac.adapters.surgery import Target, adapted, attach, freeze_but, merge, part_of_weight
from keepfrac.errors import UserError
from keepfrac.models.anatomy import anatomy
from keepfrac.models.targets import targets_of
from keepfrac.prune.masks import Masks
from keepfrac.training.adapter_account import scores_of, trained
from keepfrac.training.finetune import Batch, FineTune, warmup_then_linear

MERGES = ("masked", "dense", "keep", "sparse_by_construction")


@dataclass(frozen=True)
class Sparse:
    """S2, in the arguments of a method: `sparse`, `selector`, `selector_rank`, `selector_batches`, `selector_seed`."""

    count: int
    selector: str
    rank: int
    batches: int
    seed: int


@dataclass(frozen=True)
class Adaptation:
    """Updates and their merge, in the arguments of a method; see `Adapting`."""

    targets: Sequence[str]
    rank: int
    alpha: float
    dropout: float
    train_head: bool
    adapter: str | None
    merge: str
    sparse: Sparse | None = None

    def attach(self, module: FineTune, batches: Iterable[Batch]) -> None:
        """Gives the model its updates, unless it came with them, and freezes the rest.

        Raises:
            UserError: something cannot be adapted, or the updates that the model came with are others.
        """
        net = module.net
        if adapted(net):
            self._check_present(net)
        else:
            targets = targets_of(net, self.targets)
            positions = self._positions(module, targets, batches)
            attach(net, targets, self.rank, scale_of(self.alpha, self.rank), self.dropout, positions)
            if self.adapter:
                start_from(net, read_peft(Path(self.adapter)))
        if self.merge == "sparse_by_construction":
            for one in adapted(net).values():
                one.reserve_mask()
        self.freeze(module)

    def freeze(self, module: FineTune) -> None:
        """Only the updates learn, and the head where the task brings a new one."""
        new_head = self.train_head and module.task.head == "sequence_classification"
        freeze_but(module.net, anatomy(module.net).head if new_head else ())

    def constrain(self, net: nn.Module, masks: Mapping[str, Tensor]) -> None:
        """With merge=sparse_by_construction: from now on training sees the masks' zeros in the updated weights."""
        if self.merge == "sparse_by_construction":
            for path, one in adapted(net).items():
                one.constrain(masks.get(f"{path}.weight"))

    def deliver(self, module: FineTune) -> dict[str, float]:
        """Brings the model into the form that `merge` says; returns the scores that it had before."""
        if self.merge == "keep":
            return {}
        scores = scores_of(module)
        masks = {} if module.masks is None else dict(module.masks.items())
        left = merge(module.net, masks, keep_zeros=self.merge != "dense")
        module.masks = Masks(left) if left else None
        return {f"unmerged_{name.replace('/', '_')}": value for name, value in scores.items()}

    def _check_present(self, net: nn.Module) -> None:
        ranks = {part.rank for one in adapted(net).values() for part in one.parts()}
        named = {target.path for target in targets_of(net, self.targets)}
        if self.adapter:
            raise UserError("method.adapter: the model of model.run has updates of its own already")
        if named != set(adapted(net)) or max(ranks) != self.rank:
            raise UserError(
                f"the model of model.run has updates of rank {max(ranks)} on {len(adapted(net))} linears: go on with"
                f" the same method.rank (now {self.rank}) and method.targets (now {', '.join(self.targets)})"
            )

    def _positions(
        self, module: FineTune, targets: Sequence[Target], batches: Iterable[Batch]
    ) -> dict[Target, Tensor] | None:
        if self.sparse is None or not self.sparse.count:
            return None
        chosen, found = self.sparse, {}
        squares = gradient_squares(module, targets, batches, chosen.batches) if chosen.selector == "gradient" else {}
        for number, target in enumerate(targets):
            weight = part_of_weight(module.net.get_submodule(target.path), target)
            generator = torch.Generator().manual_seed(1_000_003 * chosen.seed + number)
            try:
                found[target] = select_positions(
                    weight, chosen.count, chosen.selector, chosen.rank, generator, squares.get(target)
                )
            except UserError as error:
                raise UserError(f"method.sparse: {target.path}: {error}") from error
        return found


def check_adaptation(settings: Mapping) -> None:
    """Checks what needs no model.

    Raises:
        UserError: names the key, its value and what is allowed.
    """
    if settings.get("merge", "masked") not in MERGES:
        raise UserError(f"method.merge={settings['merge']}: must be one of {', '.join(MERGES)}")
    for key, low in (("rank", 1), ("sparse", 0)):
        value = settings.get(key, low)
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            raise UserError(f"method.{key}={value}: must be a whole number >= {low}")
    scale_of(settings["alpha"], settings["rank"])
    if not 0 <= settings["dropout"] < 1:
        raise UserError(f"method.dropout={settings['dropout']}: must be in [0, 1)")
    if settings["dropout"] and settings.get("merge") == "sparse_by_construction":
        raise UserError(
            "method.dropout with merge=sparse_by_construction: W and its update have one input, so dropout must be 0"
        )
    if not settings["targets"]:
        raise UserError("method.targets is empty: name roles, such as [query,value]")
    if "selector" in settings:
        check_selector(settings["selector"])


class Adapting(FineTune):
    """Updates of frozen linears.

    Args:
        net: see FineTune.
        task: see FineTune.
        loop: see FineTune.
        name: the method's name in results.
        keep_frac: see the method.
        adaptation: the arguments from here on.
        targets: what has updates: roles (query, key, value, attention_output, ffn_in, ffn_out), or regular expressions
            of whole module paths; at least one.
        rank: r of every update, from 1 to the smaller side of each weight.
        alpha: the updates count alpha / r, > 0.
        dropout: of the updates' input, in [0, 1); 0 with sparse_by_construction.
        train_head: whether the task's classifier learns too.
        adapter: a PEFT LoRA folder to start from; null: none.
        merge: masked | dense | keep | sparse_by_construction, see above.
        sparse: N, values of S2 in each updated weight, >= 0; 0: no S2.
        selector: where they stand: grebsmo | magnitude | random | gradient | svd_residual.
        selector_rank: of the approximation whose residual grebsmo and svd_residual look at; null: `rank`. The DSEE
            code's grebsmo grew to 496.
        selector_batches: training batches whose squared gradients are summed, for gradient, >= 1.
        selector_seed: of what is drawn.
    """

    def __init__(self, net, task, loop, name: str, keep_frac: float, adaptation: Adaptation):
        super().__init__(net, task, loop, name, keep_frac)
        self.adaptation = adaptation
        self.prepared = False
        self.account: dict[str, float] = {}

    def prepare(self, batches: Iterable[Batch]) -> None:
        if not self.prepared:
            self.adaptation.attach(self, batches)
            self.prepared, self.account = True, trained(self)
            self.begin()

    def begin(self) -> None:
        """Runs once, when the updates are there."""
        if self.adaptation.merge == "sparse_by_construction":
            if self.masks is None:
                raise UserError("method.merge=sparse_by_construction: this model has no masks, so no zeros to hold")
            self.adaptation.constrain(self.net, dict(self.masks.items()))

    def finish(self, batches: Iterable[Batch]) -> None:
        self.prepare(batches)  # a run without training has not been prepared
        self.account |= trained(self)
        self.account |= self.adaptation.deliver(self)

    def kept(self) -> dict:
        return {**super().kept(), **self.account, "merge": self.adaptation.merge}


def restarted(progress: float, parted: float, warmup: float) -> float:
    """Returns the factor of the rate: the loop's schedule up to progress `parted`, and once more from there."""
    if progress < parted:
        return warmup_then_linear(progress / parted, warmup)
    return warmup_then_linear((progress - parted) / (1 - parted), warmup)


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
