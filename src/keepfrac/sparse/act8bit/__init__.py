"""Everything the backward pass needs in 8 bits, and the rows of each weight gradient chosen when its gradient is known.

Other sparse backward methods choose in the forward pass what to keep; there the gradient is unknown, and memory grows
with what is kept. Here memory does not depend on keep_frac: every activation is stored in 8 bits per number or
recomputed, dropout masks are regenerated, and the rows (tokens) that form a weight gradient are chosen in the backward
pass by the norm of the gradient that has arrived. keep_frac sets arithmetic alone. The forward pass is that of the
stock layer, and the gradient to the input runs over all rows, exact up to the 8-bit storage.

    saver              settings -> a converted network, and back
    layers, parts      the stock layer's class with another forward pass; its linears, norms and dropouts by name
    attention,         the two blocks as autograd functions
    feed_forward
    masked_attention   the attention of decoders, and of encoders with rotary positions: masks of queries and keys,
                       grouped heads
    norms, rms_norms   dropout, residual and norm around a block; the stored form of a block's input
    linears            linear layers with low-rank updates, gates and two factors
    weight_gradients   which rows form them, what wants a gradient, and their sums
    calls              the seed, the padding and the numbers of one call of a layer
    any_network        networks without these blocks: linears that choose rows, and hooks for all else
    any_linear, saved  such a linear; what autograd saves, stored by hooks
    allocation         the formats of each layer, chosen by measured errors for a budget of bytes
"""

from keepfrac.sparse.act8bit.saver import Act8bit, Converted, convert

__all__ = ["Act8bit", "Converted", "convert"]
