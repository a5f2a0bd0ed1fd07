"""A stock BERT or RoBERTa layer that trains through the two blocks: the same object and parameters, another class."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from transformers.models.bert.modeling_bert import BertLayer
from transformers.models.roberta.modeling_roberta import RobertaLayer

from src.errors import UserError
from src.sparse.kernels import kernels_for
from src.sparse.late.attention import AttentionBlock
from src.sparse.late.carried import Input, attach, stored_input
from src.sparse.late.feed_forward import FeedForwardBlock
from src.sparse.late.noise import Noise
from src.sparse.late.padding import Padding, PaddingReader
from src.sparse.late.products import compute_dtype
from src.sparse.late.settings import Plan, Settings, Tally


@dataclass
class LayerState:
    """What a converted layer holds besides its parameters: settings, counters, counts."""

    settings: Settings
    noise: Noise
    padding: PaddingReader
    attention: Tally = field(default_factory=Tally)
    feed_forward: Tally = field(default_factory=Tally)


def _pair(module: nn.Module) -> tuple[Any, Any]:
    return module.weight, module.bias


def _check_call(x: Tensor, others: tuple, named: dict) -> None:
    """Raises UserError for what the blocks cannot do."""
    if x.numel() == 0:
        raise UserError(f"method late got an empty batch: input of shape {tuple(x.shape)}")
    foreign = [value for value in (*others, *(named.get(key) for key in _FOREIGN)) if value is not None]
    if foreign:
        raise UserError("method late trains encoders: no cache of past keys, no encoder states to attend to")
    if named.get("output_attentions"):
        raise UserError("method late forms no attention probabilities to return; ask for hidden states only")


_FOREIGN = ("encoder_hidden_states", "encoder_attention_mask", "past_key_values")


class LateLayer:
    """Mixed into a stock layer's class: in training mode its forward goes through the two blocks.

    In evaluation mode the stock forward runs. In training mode without gradients (the first pass of reentrant
    checkpointing) the blocks run and save nothing, so that both passes draw the same masks.
    """

    late: LayerState
    late_activation: str
    # of the stock class
    attention: Any
    intermediate: Any
    output: Any
    training: bool

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, *others, **named
    ) -> Tensor:
        if not self.training:
            return super().forward(hidden_states, attention_mask, *others, **named)  # type: ignore[misc]
        _check_call(hidden_states, others, named)
        padding = self.late.padding(attention_mask, hidden_states)
        seed = self.late.noise.seed_for(hidden_states)
        return self._feed_forward(self._attention(hidden_states, padding, seed), padding, seed)

    def _plan(self, x: Tensor, padding: Padding, norm: nn.LayerNorm, dropout: nn.Dropout, **rest) -> Plan:
        return Plan(self.late.settings, (x.shape[0], x.shape[1]), padding.real, norm.eps, dropout.p, **rest)

    def _stored(self, x: Tensor, plan: Plan) -> tuple[Input, int]:
        """Returns x's stored form, and the bytes that packing it here has added."""
        compute = compute_dtype(x)
        kernels = kernels_for(plan.settings.kernels, x, compute)
        stored, added = stored_input(x, kernels, plan.formats(x.dtype, compute).hat)
        return stored, stored.data.nbytes + stored.scales.nbytes if added else 0

    def _attention(self, x: Tensor, padding: Padding, seed: int) -> Tensor:
        """Attention, dropout, residual and LayerNorm; (batch, length, width)."""
        inner, out = self.attention.self, self.attention.output
        plan = self._plan(
            x,
            padding,
            out.LayerNorm,
            out.dropout,
            seed=2 * seed,
            heads=inner.num_attention_heads,
            scale=inner.scaling,
            p_attention=inner.dropout.p,
            tally=self.late.attention,
        )
        stored, added = self._stored(x, plan)
        linears = (*_pair(inner.query), *_pair(inner.key), *_pair(inner.value), *_pair(out.dense))
        norm = _pair(out.LayerNorm)
        y, data, scales = AttentionBlock.apply(x, *stored, *linears, *norm, padding.bias, plan)
        self.late.attention.saved_bytes += added
        return attach(y, Input(data, scales, *(one.detach() for one in norm)))

    def _feed_forward(self, x: Tensor, padding: Padding, seed: int) -> Tensor:
        """Feed-forward, dropout, residual and LayerNorm; (batch, length, width)."""
        plan = self._plan(
            x,
            padding,
            self.output.LayerNorm,
            self.output.dropout,
            seed=2 * seed + 1,
            activation=self.late_activation,
            tally=self.late.feed_forward,
        )
        stored, added = self._stored(x, plan)
        linears, norm = (
            (*_pair(self.intermediate.dense), *_pair(self.output.dense)),
            _pair(self.output.LayerNorm),
        )
        y, data, scales = FeedForwardBlock.apply(x, *stored, *linears, *norm, plan)
        self.late.feed_forward.saved_bytes += added
        return attach(y, Input(data, scales, *(one.detach() for one in norm)))


class LateBertLayer(LateLayer, BertLayer):
    """A `BertLayer` that trains through the blocks."""


class LateRobertaLayer(LateLayer, RobertaLayer):
    """A `RobertaLayer` that trains through the blocks."""


CLASSES: dict[type, type] = {BertLayer: LateBertLayer, RobertaLayer: LateRobertaLayer}
