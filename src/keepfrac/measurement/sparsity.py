"""How sparse a model is: each matrix of its encoder, all of them, and the whole model. Zeros are counted, not believed.

"x20 on the encoder" says little of a model: embeddings, pooler, head, biases and norms stay dense, so BERT-base with a
twentieth of its encoder's 84,934,656 weights is 3.80 times smaller as a whole. Both figures stand side by side here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from rich.console import Console
from rich.table import Column, Table
from torch import nn

from keepfrac.errors import UserError
from keepfrac.models.anatomy import anatomy
from keepfrac.models.packed import packed_bytes
from keepfrac.tensors.layouts import is_linear

LENGTH = 128  # tokens, as `measure.macs` counts them
SHOWN = 0.999
"""Matrices with a larger share of nonzeros are dense: they are counted, and not listed."""


def matrices(net: nn.Module) -> dict[str, torch.Tensor]:
    """Returns the weights of the encoder's linears by name; of an unknown family, those of all its linears."""
    try:
        modules = [(path, net.get_submodule(path)) for layer in anatomy(net).layers for path in layer.linears]
        named = [(f"{path}.{name}", p) for path, module in modules for name, p in module.named_parameters()]
    except UserError:
        linears = ((name, module) for name, module in net.named_modules() if is_linear(module))
        named = [(f"{name}.weight", module.weight) for name, module in linears]
    return {name: weight for name, weight in named if weight.ndim == 2}


def totals(counts: Mapping[str, tuple[int, int]], params: int, nonzeros: int) -> dict:
    """Returns the totals of matrices given as (nonzeros, elements), and of the whole model.

    Args:
        counts: by matrix.
        params: of the whole model.
        nonzeros: of the whole model.
    """
    kept = sum(one for one, _ in counts.values())
    elements = sum(all_ for _, all_ in counts.values())
    return {
        "matrices": len(counts),
        "matrix_weights": elements,
        "matrix_nonzeros": kept,
        "matrix_keep_frac": kept / max(1, elements),
        "compression_matrices": elements / max(1, kept),
        "compression_model": params / max(1, nonzeros),
    }


def sparsity(net: nn.Module, macs: int) -> dict:
    """Returns totals, MACs and bytes, and a row per matrix.

    Args:
        net: any model.
        macs: of one sentence as the model computes it, zeros multiplied like all else.

    Returns:
        the figures of `account`; macs_nonzero (products with a weight of zero left out); bytes_dense (of all tensors
        as they are) and bytes_packed (as export=sparse stores them); rows: a dictionary per matrix.
    """
    found = matrices(net)
    counts = {name: (int(torch.count_nonzero(w)), w.numel()) for name, w in found.items()}
    parameters = list(net.parameters())
    total, nonzeros = (sum(map(of, parameters)) for of in (torch.Tensor.numel, lambda p: int(torch.count_nonzero(p))))
    zeros = sum(elements - kept for kept, elements in counts.values())
    return {
        **totals(counts, total, nonzeros),
        "macs_nonzero": macs - LENGTH * zeros,
        "bytes_dense": sum(p.numel() * p.element_size() for p in parameters),
        "bytes_packed": packed_bytes(net.state_dict()),
        "rows": [_row(name, found[name], kept) for name, (kept, _) in counts.items()],
    }


def _row(name: str, weight: torch.Tensor, kept: int) -> dict:
    size = weight.numel()
    return {
        "matrix": name,
        "shape": list(weight.shape),
        "elements": size,
        "nonzeros": kept,
        "keep_frac": kept / max(1, size),
    }


def show(found: Mapping, console: Console) -> None:
    """Prints the sparse matrices as a table, and the totals below."""
    rows = [row for row in found["rows"] if row["keep_frac"] < SHOWN]
    if rows:
        console.print(_table(rows))
    for name, value in found.items():
        if name != "rows":
            console.print(f"{name:22s} {value:>16,}" if isinstance(value, int) else f"{name:22s} {value:>16.4f}")


def _table(rows: Iterable[Mapping]) -> Table:
    table = Table(Column("matrix", overflow="fold"), "shape", "nonzeros", "of", "kept")
    for row in rows:
        shape = " x ".join(map(str, row["shape"]))
        table.add_row(row["matrix"], shape, f"{row['nonzeros']:,}", f"{row['elements']:,}", f"{row['keep_frac']:.4f}")
    return table
