"""A stock layer that trains through the two blocks: the same object and parameters, another class.

The class of each kind of layer is made when it is first met, whatever its family: see `late_class`.
"""

import functools
from dataclasses import dataclass, field, replace
from typing import Any

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
from keepfrac.sparse.act8bit.norms import NOTHING, NormBlock, PackedInput, attach_packed, packed_input
from keepfrac.sparse.act8bit.parts import Parts
from keepfrac.sparse.act8bit.settings import Act8bitSettings, StorageFormat
from keepfrac.sparse.act8bit.weight_gradients import wants_rows
from keepfrac.sparse.kernels import kernels_for


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


def _check_call(x: Tensor, others: tuple, named: dict) -> None:
    """Raises UserError for what the blocks cannot do."""
    if x.numel() == 0:
        raise UserError(f"method late got an empty batch: input of shape {tuple(x.shape)}")
    foreign = [value for value in (*others, *(named.get(key) for key in _FOREIGN)) if value is not None]
    if foreign:
        raise UserError("method late trains encoders: no cache of past keys, no encoder states to attend to")
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

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, *others, **named) -> Tensor:
        if not self.training:
            return super().forward(hidden_states, attention_mask, *others, **named)  # type: ignore[misc]
        parts = self.parts()
        _check_call(hidden_states, others, named)
        _check_inside(self, parts)  # type: ignore[arg-type]
        padding = self.late.padding(attention_mask, hidden_states)
        seed = self.late.seeds.seed_for(hidden_states)
        x = self._attention(hidden_states, parts, padding, seed=2 * seed)
        return self._feed_forward(x, parts, padding, seed=2 * seed + 1)

    def _call(self, x: Tensor, parts: Parts, padding: KeyPadding, *, number: int, seed: int) -> Call:
        """The numbers of a call of the first or the second sub-layer."""
        late, dropout = self.late, parts.dropouts[number]
        rate = 0.0 if dropout is None else dropout.p
        return Call(
            settings=late.settings,
            storage=late.storage,
            shape=(x.shape[0], x.shape[1]),
            real=padding.real,
            norm=NormConfig(parts.norms[number].eps, rate, parts.pre_norm),
            seed=seed,
            stats=(late.attention, late.feed_forward)[number],
        )

    def _attention(self, x: Tensor, parts: Parts, padding: KeyPadding, *, seed: int) -> Tensor:
        """Attention, dropout, residual and LayerNorm; (batch, length, width)."""
        part, norm = parts.attention, parts.norms[0]
        call = self._call(x, parts, padding, number=0, seed=seed)
        if is_dropped(norm) or (part is None and parts.pre_norm):
            return x
        if part is None:
            return _only_norm(x, norm, call)
        config = AttentionConfig(part.num_heads, part.owner.scaling, part.probability_dropout.p)
        call = replace(call, attention=config)
        linears = [spec_of(one) for one in (part.query, part.key, part.value)]
        return _block(AttentionBlock, x, first=linears, last=part.output, norm=norm, bias=padding.bias, call=call)

    def _feed_forward(self, x: Tensor, parts: Parts, padding: KeyPadding, *, seed: int) -> Tensor:
        """Feed-forward, dropout, residual and LayerNorm; (batch, length, width)."""
        part, norm = parts.feed_forward, parts.norms[1]
        call = self._call(x, parts, padding, number=1, seed=seed)
        if is_dropped(norm) or (part is None and parts.pre_norm):
            return x
        if part is None:
            return _only_norm(x, norm, call)
        call = replace(call, activation=part.activation)
        linears = [spec_of(part.ffn_in)]
        return _block(FeedForwardBlock, x, first=linears, last=part.ffn_out, norm=norm, bias=None, call=call)


def _block(
    block: Any, x: Tensor, *, first: list[LinearSpec], last: nn.Module, norm: Any, bias: Tensor | None, call: Call
) -> Tensor:
    """Runs a block on x in its stored form; its output carries its own, where it has one."""
    kernels = kernels_for(call.settings.kernels, x, compute_dtype(x))
    back, gates = gated_spec_of(last)
    linears = [*first, back]
    call = replace(call, layouts=tuple(one.layout() for one in linears))
    flat = [tensor for one in linears for tensor in one.tensors()]
    learns = [tensor is not None and tensor.requires_grad for one in first for tensor in one.tensors()]
    stored, packed = NOTHING, False
    if not call.norm.pre_norm and wants_rows(learns, call.layouts[:-1]):
        stored, packed = packed_input(x, kernels, call.storage.dtype("normalized", x.dtype))
    y, data, scales = block.apply(x, *stored, norm.weight, norm.bias, gates, bias, call, *flat)
    made = [tensor for one in linears for tensor in one.made()]
    extra = (stored.data, stored.scales) if packed else ()
    call.stats.saved_bytes += sum(tensor.nbytes for tensor in (*made, *extra))
    if data is None:
        return y
    return attach_packed(y, PackedInput(data, scales, gamma=norm.weight.detach(), beta=norm.bias.detach()))


def _only_norm(x: Tensor, norm: Any, call: Call) -> Tensor:
    """A sub-layer that was pruned: its LayerNorm alone."""
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
