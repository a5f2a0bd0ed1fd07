"""The update of a linear that was cut: U, V and S2 are cut with it."""

from __future__ import annotations

import torch
from torch import Tensor

from keepfrac.adapters.function import unravel_positions
from keepfrac.adapters.layer import Update


@torch.no_grad()
def slice_update(update: Update, rows: Tensor | None, columns: Tensor | None, gate: Tensor | None = None) -> Update:
    """Returns the update of a linear that was cut: of its kept outputs and inputs, the inputs scaled first.

    Args:
        update: of all outputs, or of a slice of them.
        rows: the linear's kept outputs, ascending; None: all.
        columns: its kept inputs, ascending; None: all.
        gate: (inputs,) that was folded into the weight's columns, or None.

    Returns:
        U's rows, V's columns times the gate, and those of S2's positions whose row and column stay, renumbered. It
        changes what is left of its slice. The rank falls to the smaller side where that is less: U V is factorised
        again, exactly.
    """
    outputs, inputs = update.outputs, update.v.shape[1]
    device, start = update.u.device, update.start
    rows = torch.arange(start + outputs, device=device) if rows is None else rows.to(device)
    columns = torch.arange(inputs, device=device) if columns is None else columns.to(device)
    gate = torch.ones(inputs, device=device) if gate is None else gate.to(device, update.v.dtype)
    own = rows[(rows >= start) & (rows < start + outputs)] - start
    new_start = int((rows < start).sum())
    u, v = update.u[own], (update.v * gate)[:, columns]
    if len(v) > min(len(own), len(columns)):
        u, v = _refactored(u, v, min(len(own), len(columns)))
    positions, values = _renumbered(update, own, columns, gate)
    small = Update(len(own), len(columns), rank=len(v), scale=update.scale, positions=positions, start=new_start)
    small.to(device)
    small.u.copy_(u)
    small.v.copy_(v)
    if small.values is not None:
        small.values.copy_(values)
    return small


def _refactored(u: Tensor, v: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    left, s, right = torch.linalg.svd(u.double() @ v.double(), full_matrices=False)
    root = s[:rank].sqrt()
    return left[:, :rank] * root, root[:, None] * right[:rank]


def _renumbered(update: Update, rows: Tensor, columns: Tensor, gate: Tensor) -> tuple[Tensor | None, Tensor]:
    """S2's positions and values in the kept rows and columns, in their new numbers."""
    if update.values is None or update.positions is None:
        return None, gate[:0]
    new_row = torch.full((update.outputs,), -1, device=rows.device)
    new_column = torch.full((update.v.shape[1],), -1, device=rows.device)
    new_row[rows] = torch.arange(len(rows), device=rows.device)
    new_column[columns] = torch.arange(len(columns), device=rows.device)
    row, column = (found.long() for found in unravel_positions(update.positions, update.v.shape[1]))
    stays = (new_row[row] >= 0) & (new_column[column] >= 0)
    positions = new_row[row[stays]] * len(columns) + new_column[column[stays]]
    return positions, (update.values * gate[column])[stays]
