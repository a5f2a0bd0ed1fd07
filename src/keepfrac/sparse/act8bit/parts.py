"""A layer's parts under one set of names, whatever its family calls them; None where a cut removed a sub-layer."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from keepfrac.adapters.layer import AdaptedLinear
from keepfrac.errors import UserError
from keepfrac.models.families import Family
from keepfrac.models.pruned import LowRankLinear
from keepfrac.sparse.act8bit.feed_forward import is_known


@dataclass(frozen=True)
class AttentionParts:
    """The linears of one attention (each whole, or held as two factors), and the module that would compute it."""

    query: nn.Module
    key: nn.Module
    value: nn.Module
    output: nn.Module
    probability_dropout: Any
    owner: Any
    num_heads: int


@dataclass(frozen=True)
class FeedForwardParts:
    """The linears of one feed-forward block and the function between them."""

    ffn_in: nn.Module
    ffn_out: nn.Module
    activation: nn.Module


@dataclass(frozen=True)
class Parts:
    """What a layer is made of.

    Args:
        attention: None: removed, only its LayerNorm is left.
        feed_forward: likewise.
        norms: LayerNorms of the attention and of the feed-forward block.
        dropouts: of the outputs of the two; None: the family has none there.
        pre_norm: whether the LayerNorms are in front of the sub-layers, not behind their sums.
    """

    attention: AttentionParts | None
    feed_forward: FeedForwardParts | None
    norms: tuple[Any, Any]
    dropouts: tuple[Any, Any]
    pre_norm: bool

    @classmethod
    def of(cls, layer: nn.Module, family: Family) -> "Parts":
        """Returns the parts of a layer, cut or whole."""

        def part(path: str | None) -> Any:
            return None if path is None else _find(layer, path)

        attention = feed_forward = None
        if part(family.query) is not None:
            owner, linears = part(family.attention), (family.query, family.key, family.value, family.attention_output)
            query, key, value, output = map(part, linears)
            attention = AttentionParts(
                query=query,
                key=key,
                value=value,
                output=output,
                probability_dropout=part(family.probability_dropout),
                owner=owner,
                num_heads=getattr(owner, str(family.num_heads)),
            )
        if part(family.ffn_out) is not None:
            feed_forward = FeedForwardParts(part(family.ffn_in), part(family.ffn_out), part(family.activation))
        norms = part(family.layer_norms[0]), part(family.layer_norms[1])
        dropouts = part(family.attention_dropout), part(family.ffn_dropout)
        return cls(attention, feed_forward, norms=norms, dropouts=dropouts, pre_norm=family.norm_at == "before")

    def linears(self) -> Iterator[tuple[str, nn.Module]]:
        """Yields name and module of each linear that is there."""
        for part, names in (
            (self.attention, ("query", "key", "value", "output")),
            (self.feed_forward, ("ffn_in", "ffn_out")),
        ):
            for name in names if part is not None else ():
                yield name, getattr(part, name)

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
        inside = self.attention.probability_dropout if self.attention is not None else None
        for dropout in (inside, *self.dropouts):
            if dropout is not None and (type(dropout) is not nn.Dropout or not 0 <= dropout.p < 1):
                raise UserError(f"method late needs dropout in [0, 1); in {path} there is {dropout!r}")
        if self.feed_forward is not None and not is_known(self.feed_forward.activation):
            raise UserError(
                "method late knows the stock activation functions without parameters; in"
                f" {path} there is {self.feed_forward.activation!r}"
            )
        for norm in self.norms:
            if type(norm) is not nn.LayerNorm or norm.bias is None:
                raise UserError(f"method late needs plain LayerNorms with a bias; in {path} there is {norm!r}")


def _find(layer: nn.Module, path: str) -> nn.Module | None:
    found: Any = layer
    for name in path.split("."):
        found = getattr(found, name, None)
    return None if getattr(found, "is_removed", False) else found


def _is_linear(linear: Any) -> bool:
    """Whether `linears.spec_of` knows it."""
    if type(linear) is LowRankLinear:
        return all(type(one) in (nn.Linear, AdaptedLinear) for one in (linear.p, linear.q)) and (
            linear.q.bias is not None
        )
    return type(linear) in (nn.Linear, AdaptedLinear) and linear.bias is not None
