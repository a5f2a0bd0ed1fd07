"""Decoders whose layers differ in size: GPT-2 and Llama with heads, neurons or layers cut away.

This file is whole by itself (torch and transformers alone): `save_pretrained` puts a copy beside the weights, and
`AutoModel*.from_pretrained(folder, trust_remote_code=True)` loads the model where the project that made it is not
installed. The configuration's own sizes (`num_attention_heads`, the intermediate size) stay those of the dense
original; what is left of it stands in these fields:

    head_dim          width of one head
    layer_heads       heads of each layer; where query heads share a key-value head (Llama), the key-value heads, each
                      with all of its query heads; 0 = the attention sub-layer adds nothing
    layer_ffn         feed-forward neurons of each layer; 0 = the same for the feed-forward sub-layer
    original_layers   number of layers of the dense original, where whole layers were dropped

Parameter names are those of the stock classes; `split_size` of a GPT-2 layer is the width of its own heads.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaModel,
)
from transformers.pytorch_utils import Conv1D

if TYPE_CHECKING:
    from transformers import PreTrainedModel as _Base
else:
    _Base = object


class PrunedGPT2Config(GPT2Config):
    """`GPT2Config` with a size for every layer; see the fields in this file's first lines."""

    model_type = "pruned_gpt2"
    head_dim: int | None = None
    layer_heads: list[int] | None = None
    layer_ffn: list[int] | None = None
    low_rank: dict[str, int] | None = None
    original_layers: int | None = None


class PrunedLlamaConfig(LlamaConfig):
    """`LlamaConfig` with a size for every layer."""

    model_type = "pruned_llama"
    layer_heads: list[int] | None = None
    layer_ffn: list[int] | None = None
    low_rank: dict[str, int] | None = None
    original_layers: int | None = None


class NoDecoderAttention(nn.Module):
    """Stands where an attention was: adds nothing to the residual, and keeps count of the tokens in the cache.

    The first layer's cache is what a model reads its position from, so an empty one would break generation.
    """

    num_heads = 0

    def __init__(self, head_dim: int, layer_idx: int) -> None:
        super().__init__()
        self.head_dim, self.layer_idx = head_dim, layer_idx

    def forward(self, hidden_states: torch.Tensor, *args, past_key_values=None, **kwargs):
        if past_key_values is not None:
            seen = hidden_states.new_zeros(len(hidden_states), 1, hidden_states.shape[1], 1)
            past_key_values.update(seen, seen, self.layer_idx)
        return torch.zeros_like(hidden_states), None


class NoFeedForward(nn.Module):
    """A removed feed-forward block: adds nothing to the residual."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(hidden_states)


def reshape(model: Any, config) -> None:
    """Gives the layers the sizes that the configuration records; in `__init__`, before weights are loaded.

    Raises:
        ValueError: a list of another length than the layers, a negative size, or low-rank linears.
    """
    base = getattr(model, model.base_model_prefix, model)
    llama = isinstance(config, LlamaConfig)
    layers = base.layers if llama else base.h
    if config.low_rank:
        raise ValueError(f"low_rank is {config.low_rank}: decoders have no low-rank linears")
    for name in ("layer_heads", "layer_ffn"):
        sizes = getattr(config, name)
        if sizes is not None and (len(sizes) != len(layers) or min(sizes) < 0):
            raise ValueError(f"{name} is {sizes}: it must give one size of at least 0 for each of {len(layers)} layers")
    head_dim = config.head_dim or config.hidden_size // config.num_attention_heads
    for i, layer in enumerate(layers):
        if config.layer_heads is not None:
            _reshape_attention(layer, config, config.layer_heads[i], head_dim)
        if config.layer_ffn is not None:
            _reshape_ffn(layer, config, config.layer_ffn[i])


def _reshape_attention(layer: Any, config, heads: int, head_dim: int) -> None:
    llama = isinstance(config, LlamaConfig)
    attention = layer.self_attn if llama else layer.attn
    if heads == 0:
        setattr(layer, "self_attn" if llama else "attn", NoDecoderAttention(head_dim, attention.layer_idx))
    elif llama:
        hidden, narrow = config.hidden_size, heads * head_dim
        wide = narrow * (config.num_attention_heads // config.num_key_value_heads)
        attention.q_proj = nn.Linear(hidden, wide, bias=config.attention_bias)
        attention.k_proj = nn.Linear(hidden, narrow, bias=config.attention_bias)
        attention.v_proj = nn.Linear(hidden, narrow, bias=config.attention_bias)
        attention.o_proj = nn.Linear(wide, hidden, bias=config.attention_bias)
    else:
        width = heads * head_dim
        attention.num_heads, attention.split_size = heads, width
        attention.c_attn = Conv1D(3 * width, config.hidden_size)
        attention.c_proj = Conv1D(config.hidden_size, width)


def _reshape_ffn(layer: Any, config, neurons: int) -> None:
    hidden = config.hidden_size
    if neurons == 0:
        layer.mlp = NoFeedForward()
    elif isinstance(config, LlamaConfig):
        for name in ("gate_proj", "up_proj"):
            setattr(layer.mlp, name, nn.Linear(hidden, neurons, bias=config.mlp_bias))
        layer.mlp.down_proj = nn.Linear(neurons, hidden, bias=config.mlp_bias)
    else:
        layer.mlp.c_fc, layer.mlp.c_proj = Conv1D(neurons, hidden), Conv1D(hidden, neurons)


class _Pruned(_Base):
    """Before a stock class: its model, with the layers reshaped, and saved together with this file."""

    def __init__(self, config, *args, **kwargs) -> None:
        super().__init__(config, *args, **kwargs)
        reshape(self, config)
        self.post_init()

    def save_pretrained(self, save_directory, *args, **kwargs) -> None:
        """Saves the model and a copy of this file, so that `trust_remote_code=True` loads it anywhere."""
        self.config.auto_map = auto_map(type(self.config))
        super().save_pretrained(save_directory, *args, **kwargs)
        here = Path(str(sys.modules[type(self).__module__].__file__))
        shutil.copyfile(here, Path(save_directory) / here.name)


class PrunedGPT2Model(_Pruned, GPT2Model):
    """`GPT2Model` with a size for every layer."""

    config_class = PrunedGPT2Config


class PrunedGPT2LMHeadModel(_Pruned, GPT2LMHeadModel):
    """`GPT2LMHeadModel` with a size for every layer."""

    config_class = PrunedGPT2Config


class PrunedGPT2ForSequenceClassification(_Pruned, GPT2ForSequenceClassification):
    """`GPT2ForSequenceClassification` with a size for every layer."""

    config_class = PrunedGPT2Config


class PrunedLlamaModel(_Pruned, LlamaModel):
    """`LlamaModel` with a size for every layer."""

    config_class = PrunedLlamaConfig


class PrunedLlamaForCausalLM(_Pruned, LlamaForCausalLM):
    """`LlamaForCausalLM` with a size for every layer."""

    config_class = PrunedLlamaConfig


class PrunedLlamaForSequenceClassification(_Pruned, LlamaForSequenceClassification):
    """`LlamaForSequenceClassification` with a size for every layer."""

    config_class = PrunedLlamaConfig


# In each: GPT-2, Llama, as in CONFIGS.
AUTO_CLASSES: dict[Any, tuple[Any, ...]] = {
    AutoModel: (PrunedGPT2Model, PrunedLlamaModel),
    AutoModelForCausalLM: (PrunedGPT2LMHeadModel, PrunedLlamaForCausalLM),
    AutoModelForSequenceClassification: (PrunedGPT2ForSequenceClassification, PrunedLlamaForSequenceClassification),
}
CONFIGS: tuple[Any, ...] = (PrunedGPT2Config, PrunedLlamaConfig)
PRUNED_OF = {cls.__mro__[2]: cls for classes in AUTO_CLASSES.values() for cls in classes}
"""Stock class -> the class of its cut models."""


def auto_map(config_class: type) -> dict[str, str]:
    """What config.json must say for every head, so that any Auto class finds its model in the folder."""
    module = __name__.rpartition(".")[2]
    number = CONFIGS.index(config_class)
    names = {auto.__name__: f"{module}.{classes[number].__name__}" for auto, classes in AUTO_CLASSES.items()}
    return {"AutoConfig": f"{module}.{config_class.__name__}", **names}


def register() -> None:
    """Makes `AutoConfig` and the `AutoModel*` classes know the cut models in this process."""
    for config_class in CONFIGS:
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    for auto, classes in AUTO_CLASSES.items():
        for cls in classes:
            auto.register(cls.config_class, cls, exist_ok=True)


# A copy beside weights is found through auto_map; it must not take the name from an installed project's own class.
if not __name__.startswith("transformers_modules"):
    register()
