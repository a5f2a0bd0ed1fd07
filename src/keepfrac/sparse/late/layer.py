"""A stock layer that trains through the two blocks: the same object and parameters, another class."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from transformers.models.bert.modeling_bert import BertLayer
from transformers.models.distilbert.modeling_distilbert import TransformerBlock
from transformers.models.roberta.modeling_roberta import RobertaLayer
from transformers.models.roberta_prelayernorm.modeling_roberta_prelayernorm import RobertaPreLayerNormLayer

from keepfrac.errors import UserError
from keepfrac.models.attention_scores import ATTRIBUTE
from keepfrac.prune.attach import HOOKS
from keepfrac.sparse.kernels import kernels_for
from keepfrac.sparse.late.attention import AttentionBlock
from keepfrac.sparse.late.carried import Input, attach, stored_input
from keepfrac.sparse.late.feed_forward import FeedForwardBlock
from keepfrac.sparse.late.linears import Held, hold, hold_gated, wants_rows
from keepfrac.sparse.late.noise import Noise
from keepfrac.sparse.late.norm import NormBlock
from keepfrac.sparse.late.padding import Padding, PaddingReader
from keepfrac.sparse.late.parts import Parts, bert_parts, distilbert_parts, is_dropped, pre_norm_parts
from keepfrac.sparse.late.products import compute_dtype
from keepfrac.sparse.late.settings import Plan, Settings, Storing, Tally


@dataclass
class LayerState:
    """What a converted layer holds besides its parameters: settings, counters, counts."""

    settings: Settings
    storing: Storing
    noise: Noise
    padding: PaddingReader
    attention: Tally = field(default_factory=Tally)
    feed_forward: Tally = field(default_factory=Tally)


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

    def parts(self) -> Parts:
        """Returns the layer's parts."""
        raise NotImplementedError

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, *others, **named) -> Tensor:
        if not self.training:
            return super().forward(hidden_states, attention_mask, *others, **named)  # type: ignore[misc]
        parts = self.parts()
        _check_call(hidden_states, others, named)
        _check_inside(self, parts)  # type: ignore[arg-type]
        padding = self.late.padding(attention_mask, hidden_states)
        seed = self.late.noise.seed_for(hidden_states)
        return self._feed_forward(self._attention(hidden_states, parts, padding, seed), parts, padding, seed)

    def _plan(self, x: Tensor, padding: Padding, norm: nn.LayerNorm, dropout: Any, **rest) -> Plan:
        shape, rate = (x.shape[0], x.shape[1]), 0.0 if dropout is None else dropout.p
        late = self.late
        return Plan(late.settings, late.storing, shape, padding.real, norm.eps, rate, **rest)

    def _attention(self, x: Tensor, parts: Parts, padding: Padding, seed: int) -> Tensor:
        """Attention, dropout, residual and LayerNorm; (batch, length, width)."""
        part, norm, tally = parts.attention, parts.attention_norm, self.late.attention
        plan = self._plan(x, padding, norm, parts.attention_dropout, seed=2 * seed, tally=tally)
        if is_dropped(norm):
            return x
        if part is None:
            return _only_norm(x, norm, plan)
        plan = plan.of_attention(part.heads, part.scale, part.dropout.p, parts.in_front)
        linears = [hold(one) for one in (part.query, part.key, part.value)]
        return _block(AttentionBlock, x, linears, part.output, norm, padding.bias, plan)

    def _feed_forward(self, x: Tensor, parts: Parts, padding: Padding, seed: int) -> Tensor:
        """Feed-forward, dropout, residual and LayerNorm; (batch, length, width)."""
        part, norm, tally = parts.feed_forward, parts.feed_forward_norm, self.late.feed_forward
        plan = self._plan(x, padding, norm, parts.feed_forward_dropout, seed=2 * seed + 1, tally=tally)
        if is_dropped(norm):
            return x
        if part is None:
            return _only_norm(x, norm, plan)
        plan = plan.of_feed_forward(part.function, parts.in_front)
        return _block(FeedForwardBlock, x, [hold(part.into)], part.back, norm, None, plan)


def _block(
    block, x: Tensor, first: list[Held], last: nn.Module, norm: nn.LayerNorm, bias: Tensor | None, plan: Plan
) -> Tensor:
    """Runs a block on x in its stored form; its output carries its own, where it has one."""
    compute = compute_dtype(x)
    kernels = kernels_for(plan.settings.kernels, x, compute)
    back, gates = hold_gated(last)
    linears = [*first, back]
    plan = plan.of_linears(tuple(one.layout() for one in linears))
    flat = [tensor for one in linears for tensor in one.tensors()]
    learns = [tensor is not None and tensor.requires_grad for one in first for tensor in one.tensors()]
    wanted = not plan.in_front and wants_rows(learns, plan.layouts[:-1])
    stored, packed = stored_input(x, kernels, plan.storing.formats(x.dtype, compute).hat, wanted)
    y, data, scales = block.apply(x, *stored, norm.weight, norm.bias, gates, bias, plan, *flat)
    made = [tensor for one in linears for tensor in one.made()]
    extra = (stored.data, stored.scales) if packed else ()
    plan.tally.saved_bytes += sum(tensor.nbytes for tensor in (*made, *extra))
    if data is None:
        return y
    return attach(y, Input(data, scales, norm.weight.detach(), norm.bias.detach()))


def _only_norm(x: Tensor, norm: nn.LayerNorm, plan: Plan) -> Tensor:
    """What is left of a sub-layer that was cut away."""
    y, data, scales = NormBlock.apply(x, norm.weight, norm.bias, plan)
    return attach(y, Input(data, scales, norm.weight.detach(), norm.bias.detach()))


class LateBertLayer(LateLayer, BertLayer):
    """A `BertLayer` that trains through the blocks."""

    parts = bert_parts


class LateRobertaLayer(LateLayer, RobertaLayer):
    """A `RobertaLayer` that trains through the blocks."""

    parts = bert_parts


class LateDistilBertLayer(LateLayer, TransformerBlock):
    """DistilBERT's `TransformerBlock` that trains through the blocks."""

    parts = distilbert_parts


class LatePreNormLayer(LateLayer, RobertaPreLayerNormLayer):
    """A `RobertaPreLayerNormLayer` that trains through the blocks."""

    parts = pre_norm_parts


CLASSES: dict[type, Any] = {
    BertLayer: LateBertLayer,
    RobertaLayer: LateRobertaLayer,
    TransformerBlock: LateDistilBertLayer,
    RobertaPreLayerNormLayer: LatePreNormLayer,
}
