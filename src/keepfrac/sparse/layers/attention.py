"""Attention whose matrix products, and whose softmax, save a part of their operands.

Per head, with S = Q K^T * scaling + mask, P = softmax(S), D = dropout(P), O = D V, and G = dL/dO:

    dD = G V^T         dV = D^T G
    dS = P * (dP - sum_j dP * P)
    dQ = dS K          dK = dS^T Q      (times scaling)

| site      | saves a part of     | where torch saves                                       |
| --------- | ------------------- | ------------------------------------------------------- |
| attention | Q, K, V and D       | all of them                                             |
| softmax   | V, P and, as bits,  | P (softmax), the noise (dropout), D and V (the product) |
|           | the dropout mask    |                                                         |

All these enter gradients that travel on to earlier layers, so unlike a linear's they change dX, and the error grows
with depth. Without dropout D is P, which softmax saves anyway: then `attention` saves that very tensor, not a copy of
a part of it; `softmax`, which holds P only once and in part, is what gets rid of it.

Q, K, V are selected from as (batch, length, heads * head_dim), like the input of a linear. P is selected from as
(batch * heads, length, length): a token is a row of P (a query), a column is a key of one sample and head (keys of
different samples have nothing in common, so columns always compete within a sample here).

Both need `eager` attention. The fused scaled_dot_product_attention never holds P and saves Q, K, V and its output by
its own kernels: there is nothing to replace, and it already saves less than eager attention with both sites at
keep_frac 0.5.

The function is registered with Transformers' AttentionInterface under the name below; a model's attention modules
find their sites in an attribute. No model code is copied. Sources: Jiang et al. 2022 (BackRazor: both operands, fused
softmax with the value product); Liu et al. 2023 (WTA-CRS: operands of both products).
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from keepfrac.sparse.layers.dropout import dropout_factors, factors_of_bits
from keepfrac.sparse.layers.linear import autocast_dtype
from keepfrac.sparse.selection.packing import Kept, PackedLayout, unpack_or_whole
from keepfrac.sparse.selection.selectors import Selector
from keepfrac.sparse.selection.site import Site
from keepfrac.tensors.bits import pack_bits

NAME = "keepfrac_eager"


@dataclass
class AttentionSites:
    """The sites of one attention module; None where a site was not asked for.

    Attributes:
        query, key: operands of Q K^T.
        value: operand of the product with P.
        weights: D, of the site `attention`.
        softmax: P, of the site `softmax`.
    """

    query: Site | None = None
    key: Site | None = None
    value: Site | None = None
    weights: Site | None = None
    softmax: Site | None = None

    @property
    def keep_all(self) -> bool:
        """Whether there is nothing to leave out: then torch's own operations run."""
        sites = (self.query, self.key, self.value, self.weights, self.softmax)
        return all(site is None or site.selector.keep_frac == 1 for site in sites)


def for_weights(selector: Selector) -> Selector:
    """Returns `selector` as it applies to the attention weights: columns compete within one sample and head."""
    return replace(selector, scope="sample", coverage=0.0) if selector.unit == "column" else selector


def _save(site: Site | None, x: Tensor) -> tuple[PackedLayout | None, tuple[Tensor, ...]]:
    """Layout and tensors to save of `x` (batch, length, features): a part, or all of it."""
    kept: Kept | None = site.select(x) if site is not None else None
    return (None, (x,)) if kept is None else (kept.layout, kept.tensors)


def _merge(x: Tensor) -> Tensor:
    """(batch, heads, length, d) as (batch, length, heads * d)."""
    return x.transpose(1, 2).flatten(2)


def _split(x: Tensor, heads: int) -> Tensor:
    """(batch, length, heads * d) as (batch, heads, length, d)."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


class SparseScoresFunction(torch.autograd.Function):
    """Q K^T that saves a part of Q and K."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, query_site: Site, key_site: Site) -> Tensor:
        """Returns Q K^T, (batch, heads, length, length), of Q and K (batch, heads, length, d)."""
        query_layout, query_tensors = _save(query_site, _merge(query))
        key_layout, key_tensors = _save(key_site, _merge(key))
        ctx.layouts, ctx.heads, ctx.cut = (query_layout, key_layout), query.shape[1], len(query_tensors)
        ctx.save_for_backward(*query_tensors, *key_tensors)
        return torch.matmul(query, key.transpose(2, 3))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """Returns dS K_hat and dS^T Q_hat."""
        tensors = ctx.saved_tensors
        query = _split(unpack_or_whole(ctx.layouts[0], tensors[: ctx.cut]), ctx.heads)
        key = _split(unpack_or_whole(ctx.layouts[1], tensors[ctx.cut :]), ctx.heads)
        with torch.autocast(grad.device.type, enabled=False):
            return torch.matmul(grad, key), torch.matmul(grad.mT, query), None, None


class SparseValuesFunction(torch.autograd.Function):
    """D V that saves a part of D and V."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, value: Tensor, weights_site: Site | None, value_site: Site | None) -> Tensor:
        """Returns D V of D (batch, heads, length, length) and V (batch, heads, length, d)."""
        weights_layout, weights_tensors = _save(weights_site, weights.flatten(0, 1))
        value_layout, value_tensors = _save(value_site, _merge(value))
        ctx.layouts, ctx.shape, ctx.cut = ((weights_layout, value_layout), tuple(weights.shape), len(weights_tensors))
        ctx.save_for_backward(*weights_tensors, *value_tensors)
        return torch.matmul(weights, value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """Returns G V_hat^T and D_hat^T G."""
        tensors = ctx.saved_tensors
        weights = unpack_or_whole(ctx.layouts[0], tensors[: ctx.cut]).view(ctx.shape)
        value = _split(unpack_or_whole(ctx.layouts[1], tensors[ctx.cut :]), ctx.shape[1])
        with torch.autocast(grad.device.type, enabled=False):
            return torch.matmul(grad, value.mT), torch.matmul(weights.mT, grad), None, None


def _count_dropout(site: Site, probabilities: Tensor, dtype: torch.dtype, bits: int) -> None:
    """Adds to the bytes of a softmax site what dropout saves: torch its noise and D, we `bits` bytes."""
    if bits:
        noise_bytes = dtype.itemsize if probabilities.device.type == "cpu" else 1
        site.bytes_dense += probabilities.numel() * (noise_bytes + dtype.itemsize)
    elif dtype != probabilities.dtype:  # D is a cast of P
        site.bytes_dense += probabilities.numel() * dtype.itemsize
    site.bytes_kept += bits
    site.bytes_predicted += bits


class SparseSoftmaxValuesFunction(torch.autograd.Function):
    """dropout(softmax(S)) V that saves a part of P and V, and the dropout mask as bits."""

    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, value: Tensor, dropout: float, softmax_site: Site, value_site: Site | None
    ) -> tuple[Tensor, Tensor]:
        """Returns the product and D; D is for inspection and has no gradient.

        The random numbers of the dropout mask are those that torch's dropout would draw.
        """
        probabilities = F.softmax(scores, dim=-1)
        factors = dropout_factors(probabilities, dropout) if dropout else None
        weights = probabilities if factors is None else probabilities * factors
        layout, tensors = _save(softmax_site, probabilities.flatten(0, 1))
        value_layout, value_tensors = _save(value_site, _merge(value))
        ctx.layouts, ctx.cut, ctx.dropout = (layout, value_layout), len(tensors), dropout
        ctx.shape, ctx.dtypes = tuple(scores.shape), (scores.dtype, probabilities.dtype, value.dtype)
        bits = () if factors is None else (pack_bits(factors != 0),)
        _count_dropout(softmax_site, probabilities, value.dtype, bits=sum(mask.numel() for mask in bits))
        ctx.save_for_backward(*tensors, *value_tensors, *bits)
        ctx.mark_non_differentiable(weights)
        return torch.matmul(weights.to(value.dtype), value), weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
        """Returns dS and dV of what was kept of P and V."""
        saved = ctx.saved_tensors
        end = len(saved) - bool(ctx.dropout)
        scores_dtype, dtype, value_dtype = ctx.dtypes
        probabilities = unpack_or_whole(ctx.layouts[0], saved[: ctx.cut]).view(ctx.shape)
        value = _split(unpack_or_whole(ctx.layouts[1], saved[ctx.cut : end]), ctx.shape[1])
        with torch.autocast(grad.device.type, enabled=False):
            d_weights, weights = torch.matmul(grad, value.mT).to(dtype), probabilities
            if ctx.dropout:
                factors = factors_of_bits(saved[-1], weights, ctx.dropout)
                d_weights, weights = d_weights * factors, weights * factors
            d_value = torch.matmul(weights.to(value_dtype).mT, grad)
            d_scores = probabilities * (d_weights - (d_weights * probabilities).sum(-1, keepdim=True))
        return d_scores.to(scores_dtype), d_value, None, None, None


@torch.compiler.disable
def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Computes attention as Transformers' eager one does, saving what the module's sites keep.

    Args:
        module: the attention module; its `sparse_sites` are used in training.
        query: (batch, heads, length, head_dim).
        key: (batch, heads, length, head_dim), or fewer heads, each for as many queries.
        value: likewise.
        attention_mask: added to the scores, (batch, 1, length, length), or None.
        scaling: of the scores; 1 / sqrt(head_dim) by default.
        dropout: probability of dropping an attention weight.
        kwargs: what Transformers passes to other attention functions.

    Returns:
        Output (batch, length, heads, head_dim) and weights (batch, heads, length, length).
    """
    sites = getattr(module, "sparse_sites", AttentionSites())
    if not (module.training and torch.is_grad_enabled()) or sites.keep_all:
        sites = AttentionSites()
    dtype = autocast_dtype(query)
    query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if key.shape[1] < query.shape[1]:  # several query heads read one key, which eager attention repeats too
        key, value = (one.repeat_interleave(query.shape[1] // one.shape[1], 1) for one in (key, value))
    scores = _scores(query, key, sites) * (query.size(-1) ** -0.5 if scaling is None else scaling)
    if attention_mask is not None:
        scores = scores + attention_mask
    if sites.softmax is not None and sites.softmax.smaller(scores.flatten(0, 1).shape, scores.element_size()):
        output, weights = SparseSoftmaxValuesFunction.apply(scores, value, dropout, sites.softmax, sites.value)
    else:
        if sites.softmax is not None:
            sites.softmax.stay_whole(scores.numel(), scores.numel() * scores.element_size())
        probabilities = F.softmax(scores, dim=-1)
        weights = F.dropout(probabilities, p=dropout, training=module.training)
        output = _values(weights, probabilities, value, sites=sites)
    return output.transpose(1, 2).contiguous(), weights


def _scores(query: Tensor, key: Tensor, sites: AttentionSites) -> Tensor:
    if sites.query is None or sites.key is None:
        return torch.matmul(query, key.transpose(2, 3))
    return SparseScoresFunction.apply(query, key, sites.query, sites.key)


def _values(weights: Tensor, probabilities: Tensor, value: Tensor, sites: AttentionSites) -> Tensor:
    if sites.value is None:
        return torch.matmul(weights, value)
    weights = weights.to(value.dtype)
    # Softmax saves its output: where that is the operand itself, a part of it would come on top.
    saved = weights.untyped_storage().data_ptr() == probabilities.untyped_storage().data_ptr()
    if sites.weights is not None:
        sites.weights.mark_saved_elsewhere("softmax saves this tensor itself" if saved else None)
    return SparseValuesFunction.apply(weights, value, None if saved else sites.weights, sites.value)


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, eager_mask)
