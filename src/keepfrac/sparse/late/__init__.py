"""Everything the backward pass needs in 8 bits, and the rows of each weight gradient chosen when its gradient is known.

Other sparse backward methods choose in the forward pass what to keep; there the gradient is unknown, and memory grows
with what is kept. Here memory does not depend on keep_frac: every activation is stored in 8 bits per number or
recomputed, dropout masks are regenerated, and the rows (tokens) that form a weight gradient are chosen in the backward
pass by the norm of the gradient that has arrived. keep_frac sets arithmetic alone. The forward pass is that of the
stock layer, and the gradient to the input runs over all rows, exact up to the 8-bit storage.
"""

from keepfrac.sparse.late.convert import Late, convert

__all__ = ["Late", "convert"]
