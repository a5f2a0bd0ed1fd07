"""The blocks' matrix products: weight gradients over chosen rows, input gradients over the rows that count."""

import torch
from torch import Tensor

from keepfrac.sparse.late.rows import nonzero_rows

# below this share of zero rows, gathering the others costs more than leaving them out saves
WORTH_SKIPPING = 0.05


def compute_dtype(x: Tensor) -> torch.dtype:
    """Returns the dtype of the matmuls: autocast's where it is on, x's otherwise."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def without_autocast(x: Tensor) -> torch.autocast:
    """The blocks cast by themselves, once; autocast would do it again at every matmul."""
    return torch.autocast(x.device.type, enabled=False)


def gather(x: Tensor, index: Tensor | slice | None) -> Tensor:
    """Returns the rows `index` of x; None: x itself."""
    if index is None:
        return x
    return x[index] if isinstance(index, slice) else x.index_select(0, index)


def live_rows(norms: Tensor, skip: bool) -> Tensor | None:
    """Returns the rows whose gradient is not zero, or None where all rows are to be worked on."""
    if not skip:
        return None
    live = nonzero_rows(norms)
    return live if len(live) < (1 - WORTH_SKIPPING) * len(norms) else None


def add_outer(total: Tensor, g: Tensor, x: Tensor) -> None:
    """Adds g^T x to total, for g (rows, out) and x (rows, in)."""
    if total.dtype == g.dtype:
        total.addmm_(g.t(), x)
    else:
        total.add_(g.t() @ x)


def add_product(total: Tensor, rows: Tensor | slice | None, g: Tensor, weight: Tensor) -> None:
    """Adds g @ weight to total[rows], in total's dtype; `rows` without repetition."""
    if isinstance(rows, Tensor):
        total.index_add_(0, rows, (g @ weight).to(total.dtype))
        return
    part = total if rows is None else total[rows]
    if part.dtype == g.dtype:
        part.addmm_(g, weight)
    else:
        part.add_(g @ weight)


def column_sums(g: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns the sum over rows, a bias's gradient, accumulated in `dtype`; (width,)."""
    if g.dtype == dtype and g.device.type == "cpu":
        return torch.mv(g.t(), g.new_ones(len(g)))  # several times faster than sum(0) on a CPU
    return g.sum(0, dtype=dtype)
