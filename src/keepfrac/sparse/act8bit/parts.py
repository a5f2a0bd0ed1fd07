"""A layer's parts under one set of names, whatever its family calls them; None where a cut removed a sub-layer."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from keepfrac.adapters.layer import AdaptedLinear
from keepfrac.errors import UserError
from keepfrac.models.families import Family
from keepfrac.models.pruned import LowRankLinear
from keepfrac.sparse.act8bit.feed_forward import is_known
from keepfrac.sparse.act8bit.rms_norms import rms_norm
from keepfrac.sparse.layers.rms_norm import eps_of


@dataclass(frozen=True)
class AttentionParts:
    """The linears of one attention (each whole, or held as two factors), and the module that would compute it.

    Query, key and value of a packed linear are the same module.
    """

    query: nn.Module
    key: nn.Module
    value: nn.Module
    output: nn.Module
    probability_dropout: Any
    owner: Any
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norms: tuple[Any, Any]

    @property
    def dropout(self) -> float:
        """Of the probabilities."""
        module = self.probability_dropout
        return getattr(self.owner, "attention_dropout", 0.0) if module is None else module.p

    @property
    def scale(self) -> float:
        """Factor of the scores."""
        return getattr(self.owner, "scaling", self.head_dim**-0.5)

    @property
    def rotate(self) -> Callable[..., Any] | None:
        """The model's own function of rotary positions, where this layer has them."""
        function = getattr(sys.modules[type(self.owner).__module__], "apply_rotary_pos_emb", None)
        return function if getattr(self.owner, "use_rope", True) else None


@dataclass(frozen=True)
class FeedForwardParts:
    """The linears of one feed-forward block, the function between them (with a gate, it is the gate's) and its dropout.

    Gate and first linear of a packed one are the same module.
    """

    ffn_in: nn.Module
    ffn_out: nn.Module
    activation: nn.Module
    gate: nn.Module | None
    dropout: Any


@dataclass(frozen=True)
class Parts:
    """What a layer is made of.

    Args:
        attention: None: removed, only its LayerNorm is left.
        feed_forward: likewise.
        norms: of the attention and of the feed-forward block; an Identity: there is none.
        output_norms: of their outputs; None: there are none.
        offset: what RMSNorms add to their weights; None: the norms are LayerNorms.
        dropouts: of the outputs of the two; None: the family has none there.
        pre_norm: whether the LayerNorms are in front of the sub-layers, not behind their sums.
    """

    attention: AttentionParts | None
    feed_forward: FeedForwardParts | None
    norms: tuple[Any, Any]
    output_norms: tuple[Any, Any]
    dropouts: tuple[Any, Any]
    pre_norm: bool
    offset: float | None

    @classmethod
    def of(cls, layer: nn.Module, family: Family) -> "Parts":
        """Returns the parts of a layer, cut or whole."""

        def part(path: str | None) -> Any:
            return None if path is None else _find(layer, path)

        attention = feed_forward = None
        if part(family.query) is not None:
            owner, linears = part(family.attention), (family.query, family.key, family.value, family.attention_output)
            query, key, value, output = map(part, linears)
            head_dim, packed = getattr(owner, family.head_dim), 3 if query is key else 1
            attention = AttentionParts(
                query=query,
                key=key,
                value=value,
                output=output,
                probability_dropout=part(family.probability_dropout),
                owner=owner,
                num_heads=outputs_of(query) // head_dim // packed,
                num_kv_heads=outputs_of(key) // head_dim // packed,
                head_dim=head_dim,
                norms=(part(family.query_norm), part(family.key_norm)),
            )
        if part(family.ffn_out) is not None:
            feed_forward = FeedForwardParts(
                part(family.ffn_in),
                part(family.ffn_out),
                part(family.activation),
                gate=part(family.ffn_gate),
                dropout=_dropout(part(family.inner_dropout)),
            )
        first, second = map(part, family.output_norms or (None, None))
        return cls(
            attention,
            feed_forward,
            norms=(part(family.layer_norms[0]), part(family.layer_norms[1])),
            output_norms=(first, second),
            dropouts=(_dropout(part(family.attention_dropout)), _dropout(part(family.ffn_dropout))),
            pre_norm=family.norm_at == "before",
            offset=family.rms_norm,
        )

    def gamma(self, norm: Any) -> Tensor:
        """Returns what a norm multiplies with, (width,)."""
        return norm.weight + self.offset if self.offset else norm.weight

    def linears(self) -> Iterator[tuple[str, nn.Module]]:
        """Yields name and module of each linear that is there, a packed one once."""
        found: dict[nn.Module, str] = {}
        for part, names in (
            (self.attention, ("query", "key", "value", "output")),
            (self.feed_forward, ("gate", "ffn_in", "ffn_out")),
        ):
            for name in names if part is not None else ():
                if (linear := getattr(part, name)) is not None:
                    found.setdefault(linear, name)
        yield from ((name, linear) for linear, name in found.items())

    def check(self, path: str) -> None:
        """Raises UserError for a layer that the blocks would not reproduce."""
        for name, linear in self.linears():
            if not _is_linear(linear):
                raise UserError(f"method late needs plain linear layers; {path}, {name}: {linear!r}")
            rates = [one.dropout.p for one in linear.modules() if isinstance(one, AdaptedLinear)]
            if any(rates):
                raise UserError(
                    f"method late has no dropout of a low-rank update's input (now {max(rates)}): set method.dropout=0"
                )
        inside = self.attention.probability_dropout if self.attention is not None else None
        inner = self.feed_forward.dropout if self.feed_forward is not None else None
        for dropout in (inside, inner, *self.dropouts):
            if dropout is not None and (type(dropout) is not nn.Dropout or not 0 <= dropout.p < 1):
                raise UserError(f"method late needs dropout in [0, 1); in {path} there is {dropout!r}")
        if self.feed_forward is not None and not is_known(self.feed_forward.activation):
            raise UserError(
                "method late knows the stock activation functions without parameters; in"
                f" {path} there is {self.feed_forward.activation!r}"
            )
        self._check_norms(path)

    def _check_norms(self, path: str) -> None:
        inner = self.attention.norms if self.attention is not None else ()
        for norm in (*self.norms, *(one for one in (*self.output_norms, *inner) if one is not None)):
            if is_bare(norm) and self.pre_norm:
                continue
            if self.offset is not None:
                self._check_rms(norm, path)
            elif type(norm) is not nn.LayerNorm or norm.weight is None:
                raise UserError(f"method late needs plain LayerNorms; in {path} there is {norm!r}")
            elif norm.bias is None and not self.pre_norm:
                raise UserError(f"method late needs a bias in LayerNorms behind; in {path} there is {norm!r}")

    @torch.no_grad()
    def _check_rms(self, norm: Any, path: str) -> None:
        """Holds, on a few numbers, that a norm is the RMSNorm that the table says."""
        x = torch.linspace(-1, 2, 2 * len(norm.weight), device=norm.weight.device).view(2, -1)
        want = rms_norm(x, self.gamma(norm).float(), eps_of(norm))[0]
        if not torch.allclose(norm(x).float(), want, rtol=2e-2, atol=1e-3):
            raise UserError(f"method late knows RMSNorms; in {path} there is {norm!r}")


def _find(layer: nn.Module, path: str) -> nn.Module | None:
    found: Any = layer
    for name in path.split("."):
        found = getattr(found, name, None)
    return None if getattr(found, "is_removed", False) else found


def _dropout(module: Any) -> Any:
    """A dropout, None where an Identity stands for the one of rate 0."""
    return None if type(module) is nn.Identity else module


def is_bare(norm: Any) -> bool:
    """Returns whether nothing is normalised there."""
    return type(norm) is nn.Identity


def outputs_of(linear: Any) -> int:
    """Returns how many outputs a linear has."""
    return linear.nf if isinstance(linear, Conv1D) else linear.out_features


def _is_linear(linear: Any) -> bool:
    """Whether `linears.spec_of` knows it."""
    if type(linear) is LowRankLinear:
        return all(type(one) in (nn.Linear, AdaptedLinear) for one in (linear.p, linear.q))
    return type(linear) in (nn.Linear, AdaptedLinear, Conv1D)
