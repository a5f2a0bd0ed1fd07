"""A layer's parts under one set of names, whatever its family calls them; None where a cut removed a sub-layer."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from torch import nn

from keepfrac.adapters.layer import AdaptedLinear
from keepfrac.errors import UserError
from keepfrac.models.pruned import LowRankLinear
from keepfrac.prune.attach import Bypass
from keepfrac.sparse.late.activations import is_known


@dataclass(frozen=True)
class AttentionParts:
    """The linears and the numbers of one attention.

    Args:
        query: a linear, or one held as two factors; so are the next three.
        key: see above.
        value: see above.
        output: see above.
        heads: their number.
        scale: of the scores.
        dropout: of the probabilities.
        owner: the module that would compute it.
    """

    query: nn.Module
    key: nn.Module
    value: nn.Module
    output: nn.Module
    heads: int
    scale: float
    dropout: Any
    owner: nn.Module


@dataclass(frozen=True)
class FeedForwardParts:
    """The linears of one feed-forward block and the function between them."""

    into: nn.Module
    back: nn.Module
    function: nn.Module


@dataclass(frozen=True)
class Parts:
    """What a layer is made of.

    Args:
        attention: None: removed, only its LayerNorm is left.
        attention_norm: LayerNorm of the attention's sum.
        attention_dropout: of the attention's output; None: the family has none.
        feed_forward: None: removed, only its LayerNorm is left.
        feed_forward_norm: LayerNorm of the feed-forward's sum.
        feed_forward_dropout: of its output.
        in_front: whether the LayerNorms are in front of the sub-layers, not behind their sums.
    """

    attention: AttentionParts | None
    attention_norm: nn.LayerNorm
    attention_dropout: nn.Module | None
    feed_forward: FeedForwardParts | None
    feed_forward_norm: nn.LayerNorm
    feed_forward_dropout: nn.Module | None
    in_front: bool = False

    def linears(self) -> Iterator[tuple[str, nn.Module]]:
        """Yields name and module of each linear that is there."""
        for part, names in (
            (self.attention, ("query", "key", "value", "output")),
            (self.feed_forward, ("into", "back")),
        ):
            for name in names if part is not None else ():
                yield name, getattr(part, name)

    def dropouts(self) -> Iterator[nn.Module]:
        """Yields the dropout modules that are there."""
        inner = self.attention.dropout if self.attention is not None else None
        yield from (one for one in (inner, self.attention_dropout, self.feed_forward_dropout) if one is not None)

    def check(self, path: str) -> None:
        """Raises UserError for a layer that the blocks would not reproduce."""
        for name, linear in self.linears():
            if not _is_linear(linear):
                raise UserError(f"method late needs plain linear layers with a bias; {path}, {name}: {linear!r}")
            rates = [one.dropout.p for one in linear.modules() if isinstance(one, AdaptedLinear)]
            if any(rates):
                raise UserError(
                    f"method late has no dropout of a low-rank update's input (now {max(rates)}): set method.dropout=0"
                )
        for dropout in self.dropouts():
            if type(dropout) is not nn.Dropout or not 0 <= dropout.p < 1:
                raise UserError(f"method late needs dropout in [0, 1); in {path} there is {dropout!r}")
        if self.feed_forward is not None and not is_known(self.feed_forward.function):
            raise UserError(
                "method late knows the stock activation functions without parameters; in"
                f" {path} there is {self.feed_forward.function!r}"
            )
        for field in fields(self):
            norm = getattr(self, field.name)
            if field.name.endswith("norm") and (type(norm) is not nn.LayerNorm or norm.bias is None):
                raise UserError(f"method late needs plain LayerNorms with a bias; in {path} there is {norm!r}")


def _is_linear(linear: Any) -> bool:
    """Whether `linears.hold` knows it."""
    if type(linear) is LowRankLinear:
        return all(type(one) in (nn.Linear, AdaptedLinear) for one in (linear.p, linear.q)) and (
            linear.q.bias is not None
        )
    return type(linear) in (nn.Linear, AdaptedLinear) and linear.bias is not None


def bert_parts(layer: Any) -> Parts:
    """Returns the parts of a BERT or RoBERTa layer, cut or whole."""
    inner, out, last = layer.attention.self, layer.attention.output, layer.output
    attention = feed_forward = None
    if hasattr(inner, "query"):
        attention = AttentionParts(
            inner.query, inner.key, inner.value, out.dense,
            inner.num_attention_heads, inner.scaling, inner.dropout, inner,
        )  # fmt: skip
    if hasattr(last, "dense"):
        feed_forward = FeedForwardParts(layer.intermediate.dense, last.dense, layer.intermediate.intermediate_act_fn)
    return Parts(
        attention, out.LayerNorm, getattr(out, "dropout", None),
        feed_forward, last.LayerNorm, getattr(last, "dropout", None),
    )  # fmt: skip


def distilbert_parts(layer: Any) -> Parts:
    """Returns the parts of a DistilBERT layer, cut or whole; nothing is dropped behind its attention."""
    inner, ffn = layer.attention, layer.ffn
    attention = feed_forward = None
    if hasattr(inner, "q_lin"):
        attention = AttentionParts(
            inner.q_lin, inner.k_lin, inner.v_lin, inner.out_lin,
            inner.n_heads, inner.scaling, inner.dropout, inner,
        )  # fmt: skip
    if hasattr(ffn, "lin1"):
        feed_forward = FeedForwardParts(ffn.lin1, ffn.lin2, ffn.activation)
    return Parts(
        attention, layer.sa_layer_norm, None,
        feed_forward, layer.output_layer_norm, getattr(ffn, "dropout", None),
    )  # fmt: skip


def pre_norm_parts(layer: Any) -> Parts:
    """Returns the parts of a RoBERTa layer with its LayerNorms in front."""
    inner, last = layer.attention.self, layer.output
    attention = AttentionParts(
        inner.query, inner.key, inner.value, layer.attention.output.dense,
        inner.num_attention_heads, inner.scaling, inner.dropout, inner,
    )  # fmt: skip
    feed_forward = FeedForwardParts(layer.intermediate.dense, last.dense, layer.intermediate.intermediate_act_fn)
    return Parts(
        attention, layer.attention.LayerNorm, layer.attention.output.dropout,
        feed_forward, layer.intermediate.LayerNorm, last.dropout, in_front=True,
    )  # fmt: skip


def is_dropped(norm: nn.Module) -> bool:
    """Whether a LayerNorm is of a layer that gates have made the identity."""
    return any(isinstance(hook, Bypass) and hook.dropped() for hook in norm._forward_hooks.values())
