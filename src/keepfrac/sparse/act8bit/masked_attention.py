"""The attention of decoders, and of encoders like them: what stands between the projections and the context.

    q, k    the RMSNorm of each head, and rotary positions, where the model has them
    P       dropout(softmax(q k' scale + mask)), each key read by one or several heads of queries
    mask    of queries and keys: causal, a window, padding, or whatever the model hands out

Nothing of it is stored but the projections: the backward pass computes it again, some samples at a time, by autograd,
and so by PyTorch's fused attention. Dropout of the probabilities takes the plain formula, with masks drawn anew.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from keepfrac.sparse.act8bit.calls import PROBABILITIES, Call
from keepfrac.sparse.act8bit.norms import PackedInput
from keepfrac.sparse.act8bit.rms_norms import rms_norm
from keepfrac.sparse.kernels.plain import keep_mask

TOKENS = 2048  # that are worked on at a time


class Positions(NamedTuple):
    """What query and key go through.

    Args:
        cos, sin: rotary positions, (batch or 1, length, d_head); None: none.
        query_gamma, key_gamma: of their RMSNorms, (d_head,); None: none.
    """

    cos: Tensor | None
    sin: Tensor | None
    query_gamma: Tensor | None
    key_gamma: Tensor | None


NO_POSITIONS = Positions(None, None, None, None)


class MaskedAttention:
    """Attention with a mask of queries and keys.

    Args:
        kernels: who unpacks.
        mask: (batch or 1, 1, length, length), booleans with True = seen, or floats to add to the scores; None: none,
            or the causal one.
        call: of the block.
        positions: what query and key go through.
    """

    def __init__(self, kernels: Any, mask: Tensor | None, call: Call, positions: Positions) -> None:
        assert call.attention is not None
        self.kernels, self.mask, self.call, self.config = kernels, mask, call, call.attention
        self.positions = positions
        self.d_gammas: list[Tensor | None] = [None, None]

    def forward(self, qkv: Tensor) -> Tensor:
        """Returns the context (batch * length, heads * d_head) of the fused projections (batch * length, ...)."""
        gammas = self.positions.query_gamma, self.positions.key_gamma
        return torch.cat([self._attend(qkv[rows], samples, gammas) for samples, rows in self._pieces()])

    def backward(self, qkv: PackedInput, d_context: Tensor, context: Tensor | None) -> Tensor:
        """Returns the gradient to the fused projections; fills `context` with the forward's, where one is given."""
        d_qkv = d_context.new_empty(qkv.data.shape)
        for samples, rows in self._pieces():
            scales = qkv.scales[rows] if qkv.scales.numel() else qkv.scales
            given = PackedInput(qkv.data[rows], scales).unpack(self.kernels, d_context.dtype)
            with torch.enable_grad():
                leaf = given.detach().requires_grad_()
                named = (self.positions.query_gamma, self.positions.key_gamma)
                gammas = tuple(None if one is None else one.detach().requires_grad_() for one in named)
                out = self._attend(leaf, samples, gammas)
            wanted = [leaf, *(one for one in gammas if one is not None)]
            d_qkv[rows], *found = torch.autograd.grad(out, wanted, d_context[rows])
            self._add(found)
            if context is not None:
                context[rows] = out.detach()
        return d_qkv

    def _add(self, found: list[Tensor]) -> None:
        """Adds the gradients of the two norms, both or none of which is there."""
        for index, one in enumerate(found):
            so_far = self.d_gammas[index]
            self.d_gammas[index] = one if so_far is None else so_far + one

    def _pieces(self) -> Iterator[tuple[slice, slice]]:
        """Slices of samples, and of their rows."""
        batch, length = self.call.shape
        step = max(1, TOKENS // length)
        for start in range(0, batch, step):
            stop = min(batch, start + step)
            yield slice(start, stop), slice(start * length, stop * length)

    def _attend(self, rows: Tensor, samples: slice, gammas: tuple[Tensor | None, ...]) -> Tensor:
        """Returns the context of some samples, of their fused projections."""
        config, length = self.config, self.call.shape[1]
        heads, shared = config.heads, config.heads // config.kv_heads
        by_head = rows.view(-1, length, heads + 2 * config.kv_heads, config.head_dim).transpose(1, 2)
        query, key, value = by_head.split([heads, config.kv_heads, config.kv_heads], dim=1)
        query, key = (
            one if gamma is None else rms_norm(one, gamma, config.head_eps)[0].to(one.dtype)
            for one, gamma in zip((query, key), gammas, strict=True)
        )
        if self.positions.cos is not None and self.positions.sin is not None:
            cos, sin = (_of(samples, one).to(query.dtype) for one in (self.positions.cos, self.positions.sin))
            query, key = config.rotate(query, key, cos, sin)
        if shared > 1:
            key, value = (one.repeat_interleave(shared, 1) for one in (key, value))
        mask = None if self.mask is None else _of(samples, self.mask)
        context = self._weighted(query, key, value, mask=mask, samples=samples)
        return context.transpose(1, 2).reshape(len(rows), -1)

    def _weighted(self, query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None, samples: slice) -> Tensor:
        """Returns P v, (samples, heads, length, d_head)."""
        config, causal = self.config, mask is None and self.config.causal
        # the fused function takes what a mask of floats hides from all queries for what it hides from none
        if config.p == 0 and (mask is None or mask.dtype == torch.bool):
            return F.scaled_dot_product_attention(
                query, key, value, attn_mask=mask, is_causal=causal, scale=config.scale
            )
        scores = (query @ key.mT).to(torch.promote_types(query.dtype, torch.float32)) * config.scale
        if causal:
            mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        if mask is not None:
            scores = _masked(scores, mask)
        return self._dropped(torch.softmax(scores, -1), samples).to(value.dtype) @ value

    def _dropped(self, probs: Tensor, samples: slice) -> Tensor:
        """Drops probabilities (samples, heads, length, length)."""
        p = self.config.p
        if p == 0:
            return probs
        seeds = [self.call.seed_of(PROBABILITIES, b) for b in range(samples.start, samples.stop)]
        kept = torch.stack([keep_mask(tuple(probs.shape[1:]), p, seed, probs.device) for seed in seeds])
        return probs * kept * (1 / (1 - p))


def _masked(scores: Tensor, mask: Tensor) -> Tensor:
    """Scores with a mask; a query that sees no key gets the least number everywhere, not -inf, which would be NaN."""
    if mask.dtype == torch.bool:
        return scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores + mask


def _of(samples: slice, x: Tensor) -> Tensor:
    """The samples' part of what there is for each, or once for all."""
    return x if len(x) == 1 else x[samples]
