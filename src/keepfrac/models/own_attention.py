"""Attention that a family computes by itself, made to ask Transformers' AttentionInterface for its function.

MPNet and DeBERTa add a bias of the tokens' distance to the scores, in a forward pass that calls no function of the
interface. Here such a module gets a class whose forward pass forms the same queries, keys, values and bias, and hands
them to the function that the configuration names; the bias goes into the mask. So whatever records or replaces the
attention function works on these families as on the others. Outside of `asking` and `ask` a model is untouched.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig

from keepfrac.tensors.change_class import change_class


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Computes softmax(Q K^T scaling + mask) V; the name is that under which a model's file has its own.

    Args:
        module: the attention, which says whether dropout is on.
        query: (batch, heads, length, head_dim).
        key: likewise.
        value: likewise.
        attention_mask: added to the scores, or None.
        scaling: of the scores.
        dropout: of the probabilities.

    Returns:
        Output (batch, length, heads, head_dim), and the probabilities (batch, heads, length, length).
    """
    scores = query @ key.mT * scaling
    weights = (scores if attention_mask is None else scores + attention_mask).softmax(-1)
    weights = nn.functional.dropout(weights, dropout, module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class _Asking:
    """Before a stock attention's class: its forward pass asks the interface."""

    attention_config: PreTrainedConfig
    dropout: Any
    training: bool

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, *, scaling: float, bias: Any, mask: Any) -> tuple:
        """Returns the output (batch, length, width), and the probabilities or None."""
        asked = self.attention_config._attn_implementation
        function = AttentionInterface().get_interface(asked, eager_attention_forward)
        rate = self.dropout.p if self.training else 0.0
        output, weights = function(self, query, key, value, mask, scaling=scaling, dropout=rate, position_bias=bias)
        return output.flatten(2), weights


class _AskingMPNet(_Asking):
    """Scores Q K^T / sqrt(d) + bias of the distance, the same in all layers."""

    def forward(
        self: Any, hidden_states: Tensor, attention_mask=None, position_bias=None, output_attentions=False, **_: Any
    ) -> tuple:
        shape = (*hidden_states.shape[:-1], -1, self.attention_head_size)
        query, key, value = (one(hidden_states).view(shape).transpose(1, 2) for one in (self.q, self.k, self.v))
        numbers = getattr(self, "head_numbers", None)  # of a cut model
        bias = position_bias if numbers is None or position_bias is None else position_bias[:, numbers]
        there = [one for one in (bias, attention_mask) if one is not None]
        mask = sum(there[1:], there[0]) if there else None
        scaling = 1 / math.sqrt(self.attention_head_size)
        context, weights = self._attend(query, key, value, scaling=scaling, bias=bias, mask=mask)
        return (self.o(context), weights) if output_attentions else (self.o(context),)


class _AskingDeberta(_Asking):
    """Scores (Q K^T + Q P_k^T + P_q K^T) / sqrt(f d), with f products; He et al. 2021, eq. (4)."""

    def forward(
        self: Any,
        hidden_states: Tensor,
        attention_mask: Tensor,
        output_attentions: bool = False,
        query_states: Tensor | None = None,
        relative_pos: Tensor | None = None,
        rel_embeddings: Tensor | None = None,
    ) -> tuple:
        read = (hidden_states if query_states is None else query_states, hidden_states, hidden_states)
        linears = (self.query_proj, self.key_proj, self.value_proj)
        heads = self.num_attention_heads
        flat = [self.transpose_for_scores(linear(x), heads) for linear, x in zip(linears, read, strict=True)]
        query, key, value = (one.unflatten(0, (-1, heads)) for one in flat)
        factor = 1 + len({"c2p", "p2c"}.intersection(self.pos_att_type))
        bias = query.new_zeros(())
        if self.relative_attention:
            positions = self.pos_dropout(rel_embeddings)
            found = self.disentangled_attention_bias(flat[0], flat[1], relative_pos, positions, factor)
            bias = found.unflatten(0, (-1, heads)) if isinstance(found, Tensor) else bias  # 0 without products
        mask = torch.where(attention_mask.bool(), bias, torch.finfo(query.dtype).min)
        root = torch.tensor(query.shape[-1] * factor, dtype=torch.float).sqrt().item()  # as theirs: in single precision
        scaling = 1 / root
        context, weights = self._attend(query, key, value, scaling=scaling, bias=bias, mask=mask)
        return (context, weights if output_attentions else None)


ASKING = {"MPNetSelfAttention": _AskingMPNet, "DisentangledSelfAttention": _AskingDeberta}
"""Stock classes of attention by name, and what makes them ask."""


def can_ask(attention: nn.Module) -> bool:
    """Returns whether `ask` knows this attention."""
    return _asking_of(type(attention)) is not None


def ask(net: Any, paths: Sequence[str]) -> list[Callable[[], None]]:
    """Makes attentions of `net` ask the interface, in place; those that do already stay as they are.

    Args:
        net: the model; its configuration names the function.
        paths: of the attentions.

    Returns:
        What undoes it, to be called in reverse order.
    """
    new: list[Any] = [one for one in map(net.get_submodule, paths) if can_ask(one) and not isinstance(one, _Asking)]
    return [change_class(one, _class_of(one.__class__), attention_config=net.config).undo for one in new]


@contextmanager
def asking(net: Any, paths: Sequence[str]) -> Iterator[None]:
    """Makes attentions of `net` ask the interface inside the block."""
    undo = ask(net, paths)
    try:
        yield
    finally:
        for one in reversed(undo):
            one()


def _asking_of(stock: type) -> type | None:
    return next((ASKING[one.__name__] for one in stock.__mro__ if one.__name__ in ASKING), None)


@functools.cache
def _class_of(stock: Any) -> Any:
    bases: Any = (_asking_of(stock), stock)
    return type(f"Asking{stock.__name__}", bases, {"__module__": __name__})
