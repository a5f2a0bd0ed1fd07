"""A stock layer that trains through the two blocks: the same object and parameters, another class.

The class of each kind of layer is made when it is first met, whatever its family: see `late_class`.
"""

import functools
import inspect
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from torch import Tensor, nn

from keepfrac.errors import UserError
from keepfrac.models.attention_scores import ATTRIBUTE
from keepfrac.models.families import Family
from keepfrac.prune.attach import HOOKS, Bypass
from keepfrac.sparse.act8bit.attention import AttentionBlock
from keepfrac.sparse.act8bit.calls import (
    AttentionConfig,
    Call,
    KeyPadding,
    NormConfig,
    PaddingReader,
    RowStats,
    SeedCounter,
)
from keepfrac.sparse.act8bit.feed_forward import FeedForwardBlock
from keepfrac.sparse.act8bit.linears import LinearSpec, compute_dtype, gated_spec_of, spec_of
from keepfrac.sparse.act8bit.masked_attention import NO_POSITIONS, Positions
from keepfrac.sparse.act8bit.norms import NOTHING, NormBlock, PackedInput, attach_packed, packed_input
from keepfrac.sparse.act8bit.parts import AttentionParts, Parts, is_bare
from keepfrac.sparse.act8bit.settings import Act8bitSettings, StorageFormat
from keepfrac.sparse.act8bit.weight_gradients import wants_rows
from keepfrac.sparse.kernels import kernels_for
from keepfrac.sparse.layers.rms_norm import eps_of


@dataclass
class LayerState:
    """The state of a converted layer except its parameters: settings, counters, counts."""

    settings: Act8bitSettings
    storage: StorageFormat
    seeds: SeedCounter
    padding: PaddingReader
    family: Family
    attention: RowStats = field(default_factory=RowStats)
    feed_forward: RowStats = field(default_factory=RowStats)


_FOREIGN = ("encoder_hidden_states", "encoder_attention_mask", "past_key_values")


@functools.cache
def _signature(stock: Any) -> inspect.Signature:
    return inspect.signature(stock.forward)


def _named(stock: Any, x: Tensor, others: tuple, named: dict) -> dict[str, Any]:
    """The arguments of a call of a stock layer by name, whatever their order."""
    bound = _signature(stock).bind_partial(None, x, *others, **named).arguments
    return {**bound, **bound.get("kwargs", {})}


def _check_call(x: Tensor, named: dict) -> None:
    """Raises UserError for what the blocks cannot do."""
    if x.numel() == 0:
        raise UserError(f"method late got an empty batch: input of shape {tuple(x.shape)}")
    if any(named.get(key) is not None for key in _FOREIGN):
        raise UserError("method late trains: no cache of past keys (use_cache=false), no encoder states to attend to")
    if named.get("output_attentions"):
        raise UserError("method late forms no attention probabilities to return; ask for hidden states only")


def _check_inside(layer: nn.Module, parts: Parts) -> None:
    """Raises UserError where somebody waits for what happens inside the layer: its modules are not called."""
    if parts.attention is not None and hasattr(parts.attention.owner, ATTRIBUTE):
        raise UserError(
            "method late forms no attention scores to distil from: choose distill=hidden (or distill=logits), or set"
            " distill.w_att=0"
        )
    for name, module in layer.named_modules():
        hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values()) if name else ()
        if not all(isinstance(hook, HOOKS) or _is_of_transformers(hook) for hook in hooks):
            raise UserError(
                f"method late does not call the modules inside a layer, and {name} has a hook that is none of our"
                " gates: train with another method, or take the hook off"
            )


def _is_of_transformers(hook: object) -> bool:
    """Whether it is one that transformers leaves behind, which collects nothing unless it is asked."""
    return (getattr(hook, "__module__", None) or "").startswith("transformers.")


class LateLayer:
    """Mixed into a stock layer's class: in training mode its forward goes through the two blocks.

    In evaluation mode the stock forward runs. In training mode without gradients (the first pass of reentrant
    checkpointing) the blocks run and save nothing, so that both passes draw the same masks.
    """

    late: LayerState
    training: bool
    stock: type

    def parts(self) -> Parts:
        """Returns the layer's parts."""
        return Parts.of(self, self.late.family)  # type: ignore[arg-type]

    def __reduce__(self) -> tuple:
        return (_empty, (self.stock,), self.__dict__)

    def forward(self, hidden_states: Tensor, *others, **named) -> Tensor:
        if not self.training:
            return super().forward(hidden_states, *others, **named)  # type: ignore[misc]
        parts, given = self.parts(), _named(self.stock, hidden_states, others, named)
        _check_call(hidden_states, given)
        _check_inside(self, parts)  # type: ignore[arg-type]
        padding = self._padding(hidden_states, parts, given.get("attention_mask"))
        seed = self.late.seeds.seed_for(hidden_states)
        rotary = given.get("position_embeddings") or (None, None)
        x = self._attention(hidden_states, parts, padding, seed=2 * seed, rotary=rotary)
        return self._feed_forward(x, parts, padding, seed=2 * seed + 1)

    @property
    def _masked(self) -> bool:
        """Whether its attention is that of `masked_attention`."""
        return self.late.family.causal or self.late.family.rotary

    def _padding(self, x: Tensor, parts: Parts, mask: Tensor | None) -> KeyPadding:
        if parts.attention is None or not self._masked:
            return self.late.padding(mask, x) if not self._masked else KeyPadding(None, x.shape[0] * x.shape[1])
        owner = parts.attention.owner
        window, causal = getattr(owner, "sliding_window", None), _is_causal(owner, self.late.family)
        return self.late.padding(mask, x, masked=True, window=window, causal=causal)

    def _call(self, x: Tensor, parts: Parts, padding: KeyPadding, *, number: int, seed: int) -> Call:
        """The numbers of a call of the first or the second sub-layer."""
        late, rate = self.late, _rate(parts.dropouts[number])
        return Call(
            settings=late.settings,
            storage=late.storage,
            shape=(x.shape[0], x.shape[1]),
            real=padding.real,
            norm=_norm_config(parts, number, rate),
            seed=seed,
            stats=(late.attention, late.feed_forward)[number],
        )

    def _attention(self, x: Tensor, parts: Parts, padding: KeyPadding, *, seed: int, rotary: tuple) -> Tensor:
        """Attention, dropout, residual and norm; (batch, length, width)."""
        part = parts.attention
        call = self._call(x, parts, padding, number=0, seed=seed)
        if part is None or is_dropped(parts.norms[0]):
            return _removed(x, parts, call, number=0)
        call = replace(call, attention=self._attention_config(part))
        linears = [spec_of(one) for one in dict.fromkeys((part.query, part.key, part.value))]
        gammas = [None if one is None else parts.gamma(one) for one in part.norms]
        positions = Positions(*(rotary if part.rotate else (None, None)), *gammas)
        around = Around.of(parts, 0)
        return _block(
            AttentionBlock, x, first=linears, last=part.output, around=around, bias=padding.bias, call=call,
            positions=positions,
        )  # fmt: skip

    def _attention_config(self, part: AttentionParts) -> AttentionConfig:
        plain = AttentionConfig(part.num_heads, part.scale, part.dropout)
        if not self._masked:
            return plain
        return plain._replace(
            masked=True,
            causal=_is_causal(part.owner, self.late.family),
            kv_heads=part.num_kv_heads,
            head_dim=part.head_dim,
            head_eps=0.0 if part.norms[0] is None else eps_of(part.norms[0]),
            rotate=part.rotate,
        )

    def _feed_forward(self, x: Tensor, parts: Parts, padding: KeyPadding, *, seed: int) -> Tensor:
        """Feed-forward, dropout, residual and norm; (batch, length, width)."""
        part = parts.feed_forward
        call = self._call(x, parts, padding, number=1, seed=seed)
        if part is None or is_dropped(parts.norms[1]):
            return _removed(x, parts, call, number=1)
        call = replace(call, activation=part.activation, gated=part.gate is not None, inner_p=_rate(part.dropout))
        linears = [spec_of(one) for one in dict.fromkeys((part.gate, part.ffn_in)) if one is not None]
        around = Around.of(parts, 1)
        return _block(FeedForwardBlock, x, first=linears, last=part.ffn_out, around=around, bias=None, call=call)


def _rate(dropout: Any) -> float:
    return 0.0 if dropout is None else dropout.p


def _is_causal(owner: nn.Module, family: Family) -> bool:
    return bool(getattr(owner, "is_causal", family.causal))


def _norm_config(parts: Parts, number: int, rate: float) -> NormConfig:
    norm, output, rms = parts.norms[number], parts.output_norms[number], parts.offset is not None
    if is_bare(norm):
        return NormConfig(0.0, rate, parts.pre_norm, bare=True)
    output_eps = None if output is None else eps_of(output)
    return NormConfig(eps_of(norm), rate, parts.pre_norm, rms=rms, output_eps=output_eps)


class Around(NamedTuple):
    """What the norms of a sub-layer multiply with and add."""

    gamma: Tensor | None
    beta: Tensor | None
    output_gamma: Tensor | None

    @classmethod
    def of(cls, parts: Parts, number: int) -> "Around":
        """Returns those of the first or the second sub-layer."""
        norm, output = parts.norms[number], parts.output_norms[number]
        if is_bare(norm):
            return cls(None, None, None)
        return cls(parts.gamma(norm), getattr(norm, "bias", None), None if output is None else parts.gamma(output))


def _block(
    block: Any,
    x: Tensor,
    *,
    first: list[LinearSpec],
    last: nn.Module,
    around: Around,
    bias: Tensor | None,
    call: Call,
    positions: Positions = NO_POSITIONS,
) -> Tensor:
    """Runs a block on x in its stored form; its output carries its own, where it has one."""
    kernels = kernels_for(call.settings.kernels, x, compute_dtype(x))
    back, gates = gated_spec_of(last)
    linears = [*first, back]
    call = replace(call, layouts=tuple(one.layout() for one in linears))
    flat = [tensor for one in linears for tensor in one.tensors()]
    learns = [tensor is not None and tensor.requires_grad for one in first for tensor in one.tensors()]
    stored, packed = NOTHING, False
    if (call.norm.bare or not call.norm.pre_norm) and wants_rows(learns, call.layouts[:-1]):
        stored, packed = packed_input(x, kernels, call.storage.dtype("normalized", x.dtype))
    y, data, scales = block.apply(x, *stored, *around, gates, bias, call, *positions, *flat)
    made = [tensor for one in linears for tensor in one.made()]
    extra = (stored.data, stored.scales) if packed else ()
    call.stats.saved_bytes += sum(tensor.nbytes for tensor in (*made, *extra))
    if data is None or around.gamma is None or around.beta is None:
        return y
    return attach_packed(y, PackedInput(data, scales, gamma=around.gamma.detach(), beta=around.beta.detach()))


def _removed(x: Tensor, parts: Parts, call: Call, *, number: int) -> Tensor:
    """A sub-layer that was pruned: its LayerNorm alone, where that is behind; nothing in a dropped layer."""
    norm, output = parts.norms[number], parts.output_norms[number]
    if output is not None and not is_dropped(norm):
        return x + parts.gamma(output) * 0  # the norm of zeros, whose weight has a gradient: that is 0
    if parts.pre_norm or is_dropped(norm):
        return x
    y, data, scales = NormBlock.apply(x, norm.weight, norm.bias, call)
    return attach_packed(y, PackedInput(data, scales, gamma=norm.weight.detach(), beta=norm.bias.detach()))


def is_dropped(norm: nn.Module) -> bool:
    """Returns whether a LayerNorm is of a layer that gates have made the identity."""
    return any(isinstance(hook, Bypass) and hook.dropped() for hook in norm._forward_hooks.values())


@functools.cache
def late_class(stock: Any) -> Any:
    """Returns the class of a stock layer's class that trains through the blocks; its `stock` leads back."""
    return type(f"Late{stock.__name__}", (LateLayer, stock), {"stock": stock, "__module__": __name__})


def _empty(stock: Any) -> Any:
    """For pickle and copy: a converted layer without anything in it."""
    return late_class(stock).__new__(late_class(stock))
