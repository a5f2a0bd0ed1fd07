"""`add_updates`: low-rank, and sparse, updates of a model's frozen linears, in any training loop."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from keepfrac.adapters import surgery
from keepfrac.adapters.layer import scale_of
from keepfrac.adapters.peft_folder import read_peft, start_from, write_peft
from keepfrac.adapters.selection import select_positions
from keepfrac.adapters.surgery import Target, adapted, attach, detach, freeze_but, part_of_weight, trainable
from keepfrac.errors import UserError
from keepfrac.models.anatomy import anatomy
from keepfrac.models.targets import targets_of

DRAWN_FROM_WEIGHTS = ("grebsmo", "magnitude", "random", "svd_residual")


class Updates:
    """The handle on a model with updates.

    Args:
        model: the model.
        learnt_before: names of the parameters that were trained before.
    """

    def __init__(self, model: nn.Module, learnt_before: set[str]) -> None:
        self.model, self._learnt = model, learnt_before

    def kept(self) -> dict[str, Any]:
        """Returns trained_params, and trained_frac of all parameters."""
        trained = trainable(self.model)
        return {"trained_params": trained, "trained_frac": trained / sum(p.numel() for p in self.model.parameters())}

    def report(self) -> list[dict[str, Any]]:
        """Returns one row per update: path of its linear, role, rank, scale, and how many values S2 has."""
        return [
            {"path": path, "role": role, "rank": one.rank, "scale": one.scale, "sparse": _sparse(one)}
            for path, module in adapted(self.model).items()
            for role, one in zip(module.updates, module.parts(), strict=True)
        ]

    def save(self, folder: str | Path, base: str = "") -> Path:
        """Writes a PEFT folder; `base` is the name or folder of the model that the updates belong to."""
        return write_peft(self.model, Path(folder), base or getattr(self.model, "name_or_path", ""))

    def merge(self) -> None:
        """Adds the updates to the weights: a stock model, of the same outputs."""
        surgery.merge(self.model, {}, keep_zeros=False)
        self._thaw()

    def restore(self) -> None:
        """Takes the updates off: the model as it was, but for a head that was trained."""
        detach(self.model)
        self._thaw()

    def _thaw(self) -> None:
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in self._learnt)


def add_updates(
    model: nn.Module,
    rank: int = 8,
    targets: Sequence[str] = ("query", "value"),
    *,
    alpha: float | None = None,
    dropout: float = 0.0,
    sparse: int = 0,
    selector: str = "grebsmo",
    adapter: str | Path | None = None,
    train_head: bool = True,
    seed: int = 0,
) -> Updates:
    """Freezes a model and gives some of its linears updates s (U V + S2), s = alpha / rank, in place.

    Args:
        model: any of the known families; by regular expressions of paths also others.
        rank: r, 1 to the smaller side of each weight.
        targets: roles (query, key, value, attention_output, ffn_in, ffn_gate, ffn_out), or regular expressions of
            whole module paths.
        alpha: above 0; None: 2 r.
        dropout: of the updates' input, in [0, 1).
        sparse: N, values of S2 in each weight; 0: plain LoRA.
        selector: where S2 stands: grebsmo, magnitude, random or svd_residual.
        adapter: a PEFT LoRA folder to start from, whose r must be `rank`.
        train_head: whether the modules outside of the encoder or decoder are trained too.
        seed: of V's beginning (U begins at 0), and of S2's places.

    Returns:
        The handle: `kept()`, `report()`, `merge()`, `restore()`, `save(folder)`.

    Raises:
        UserError: something that is named is not there or cannot have an update, or a value out of its range.
    """
    learnt = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not 0 <= dropout < 1:
        raise UserError(f"dropout={dropout}: must be a number in [0, 1)")
    try:
        found = targets_of(model, targets)
        positions = _positions(model, found, sparse, selector=selector, rank=rank, seed=seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            scale = scale_of(2 * rank if alpha is None else alpha, rank)
            attach(model, found, rank, scale=scale, dropout=dropout, positions=positions)
        if adapter is not None:
            start_from(model, read_peft(Path(adapter)))
    except UserError as error:
        raise UserError(str(error).replace("method.", "")) from error
    freeze_but(model, anatomy(model).head if train_head else ())
    return Updates(model, learnt)


def _positions(
    model: nn.Module, targets: Sequence[Target], sparse: int, *, selector: str, rank: int, seed: int
) -> dict[Target, Tensor] | None:
    if not sparse:
        return None
    if selector not in DRAWN_FROM_WEIGHTS:
        raise UserError(f"selector={selector}: must be one of {', '.join(DRAWN_FROM_WEIGHTS)}")
    found = {}
    for index, target in enumerate(targets):
        weight = part_of_weight(model.get_submodule(target.path), target)
        generator = torch.Generator().manual_seed(1_000_003 * seed + index)
        found[target] = select_positions(weight, sparse, selector, rank=rank, generator=generator)
    return found


def _sparse(update: Any) -> int:
    return 0 if update.values is None else len(update.values)
