"""What a block has to compute in its backward pass, and so to store: only what someone learns from."""

from typing import Any, NamedTuple

from keepfrac.sparse.late.linears import wants_rows
from keepfrac.sparse.late.settings import Plan

GIVEN = 10
"""Arguments of a block before the linears' tensors."""
GATES = 7
"""The place of the gates among them."""


class Needs(NamedTuple):
    """What wants a gradient.

    Args:
        tensors: of all linears (`Held.tensors`), whether each does.
        back_size: how many of them are the last linear's.
        into: whether anything of the first linears is a sum over rows of g x^T.
        back: the same of the last one.
        gates: whether the factors of the last linear's columns do.
    """

    tensors: tuple[bool, ...]
    back_size: int
    into: bool
    back: bool
    gates: bool

    @property
    def of_into(self) -> tuple[bool, ...]:
        """Those of the first linears."""
        return self.tensors[: -self.back_size]

    @property
    def of_back(self) -> tuple[bool, ...]:
        """Those of the last one."""
        return self.tensors[-self.back_size :]

    @property
    def context(self) -> bool:
        """Whether the last linear's input has to be there."""
        return self.back or self.gates

    @classmethod
    def of(cls, ctx: Any, plan: Plan) -> "Needs":
        """Reads the needs of a call."""
        tensors = tuple(ctx.needs_input_grad[GIVEN:])
        size = 2 + 4 * len(plan.layouts[-1])
        return cls(
            tensors,
            size,
            wants_rows(tensors[:-size], plan.layouts[:-1]),
            wants_rows(tensors[-size:], plan.layouts[-1:]),
            ctx.needs_input_grad[GATES],
        )
