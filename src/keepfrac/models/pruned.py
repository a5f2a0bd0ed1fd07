"""Encoders whose layers differ in size: BERT, RoBERTa and DistilBERT with heads, neurons or layers cut away.

This file is whole by itself (torch and transformers alone): `save_pretrained` puts a copy beside the weights, and
`AutoModel*.from_pretrained(folder, trust_remote_code=True)` loads the model where the project that made it is not
installed. The configuration's own sizes (`num_attention_heads`, the intermediate size) stay those of the dense
original; what is left of it stands in these fields:

    head_dim          width of one head
    layer_heads       heads of each layer; 0 = the attention sub-layer is removed, its layer norm stays
    layer_ffn         feed-forward neurons of each layer; 0 = the same for the feed-forward sub-layer
    low_rank          module name inside the encoder -> rank, for linears held as two factors q(p(x))
    original_layers   number of layers of the dense original, where whole layers were dropped

Parameter names are those of the stock classes.
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
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForMaskedLM,
    DistilBertForQuestionAnswering,
    DistilBertForSequenceClassification,
    DistilBertForTokenClassification,
    DistilBertModel,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForQuestionAnswering,
    RobertaForSequenceClassification,
    RobertaForTokenClassification,
    RobertaModel,
)

BERT_PATHS = {
    "layers": "encoder.layer",
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_output": "attention.output.dense",
    "ffn_in": "intermediate.dense",
    "ffn_out": "output.dense",
    "layer_norms": ("attention.output.LayerNorm", "output.LayerNorm"),
}
DISTILBERT_PATHS = {
    "layers": "transformer.layer",
    "query": "attention.q_lin",
    "key": "attention.k_lin",
    "value": "attention.v_lin",
    "attention_output": "attention.out_lin",
    "ffn_in": "ffn.lin1",
    "ffn_out": "ffn.lin2",
    "layer_norms": ("sa_layer_norm", "output_layer_norm"),
}


if TYPE_CHECKING:
    from transformers import PreTrainedModel as _Base
else:
    _Base = object


class PrunedBertConfig(BertConfig):
    """`BertConfig` with a size for every layer; see the fields in this file's first lines."""

    model_type = "pruned_bert"
    head_dim: int | None = None
    layer_heads: list[int] | None = None
    layer_ffn: list[int] | None = None
    low_rank: dict[str, int] | None = None
    original_layers: int | None = None


class PrunedRobertaConfig(RobertaConfig):
    """`RobertaConfig` with a size for every layer."""

    model_type = "pruned_roberta"
    head_dim: int | None = None
    layer_heads: list[int] | None = None
    layer_ffn: list[int] | None = None
    low_rank: dict[str, int] | None = None
    original_layers: int | None = None


class PrunedDistilBertConfig(DistilBertConfig):
    """`DistilBertConfig` with a size for every layer."""

    model_type = "pruned_distilbert"
    head_dim: int | None = None
    layer_heads: list[int] | None = None
    layer_ffn: list[int] | None = None
    low_rank: dict[str, int] | None = None
    original_layers: int | None = None


class LowRankLinear(nn.Module):
    """y = q(p(x)): `p` (inputs -> rank) without bias, `q` (rank -> outputs) with the linear's bias."""

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.p = nn.Linear(in_features, rank, bias=False)
        self.q = nn.Linear(rank, out_features, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.q(self.p(x))


class NoAttention(nn.Module):
    """Stands where an attention was: hands on its input (BERT: the output block adds nothing to the residual)."""

    num_attention_heads = all_head_size = 0

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.attention_head_size = head_dim

    def forward(self, hidden_states: torch.Tensor, *args, **kwargs) -> tuple[torch.Tensor, None]:
        return hidden_states, None


class NormOnly(nn.Module):
    """The output block of a removed sub-layer: the layer norm of the residual alone."""

    def __init__(self, layer_norm: nn.LayerNorm) -> None:
        super().__init__()
        self.LayerNorm = layer_norm

    def forward(self, hidden_states: torch.Tensor, input_tensor: torch.Tensor) -> torch.Tensor:
        return self.LayerNorm(input_tensor)


class ZeroAttention(nn.Module):
    """A removed attention where the caller adds the residual (DistilBERT)."""

    n_heads = 0

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.attention_head_size = head_dim

    def forward(self, hidden_states: torch.Tensor, *args, **kwargs) -> tuple[torch.Tensor, None]:
        return torch.zeros_like(hidden_states), None


class ZeroFeedForward(nn.Module):
    """A removed feed-forward block where the caller adds the residual (DistilBERT)."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(hidden_states)


def paths_of(config) -> dict:
    """How the configuration's family spells its parts."""
    return DISTILBERT_PATHS if isinstance(config, DistilBertConfig) else BERT_PATHS


def reshape(model: Any, config) -> None:
    """Gives the layers the sizes that the configuration records; in `__init__`, before weights are loaded.

    Raises:
        ValueError: a list of another length than the layers, a negative size, or an unknown low-rank module.
    """
    base = getattr(model, model.base_model_prefix, model)
    paths = paths_of(config)
    layers = base.get_submodule(paths["layers"])
    for name in ("layer_heads", "layer_ffn"):
        sizes = getattr(config, name)
        if sizes is not None and (len(sizes) != len(layers) or min(sizes) < 0):
            raise ValueError(f"{name} is {sizes}: it must give one size of at least 0 for each of {len(layers)} layers")
    head_dim = config.head_dim or config.hidden_size // config.num_attention_heads
    for i, layer in enumerate(layers):
        if config.layer_heads is not None:
            _reshape_attention(layer, paths, config.hidden_size, config.layer_heads[i], head_dim)
        if config.layer_ffn is not None:
            _reshape_ffn(layer, paths, config.hidden_size, config.layer_ffn[i])
    for name, rank in (config.low_rank or {}).items():
        linear = base.get_submodule(name)
        if not isinstance(linear, nn.Linear) or rank < 1:
            raise ValueError(f"low_rank has {name}: {rank}, which must be a linear of the encoder and at least 1")
        twin = LowRankLinear(linear.in_features, linear.out_features, rank, linear.bias is not None)
        _replace(base, name, twin)


def _reshape_attention(layer: Any, paths: dict, hidden: int, heads: int, head_dim: int) -> None:
    bert = paths is BERT_PATHS
    if heads == 0 and bert:
        layer.attention.self = NoAttention(head_dim)
        layer.attention.output = NormOnly(layer.attention.output.LayerNorm)
    elif heads == 0:
        layer.attention = ZeroAttention(head_dim)
    else:
        attention = layer.attention.self if bert else layer.attention
        setattr(attention, "num_attention_heads" if bert else "n_heads", heads)
        attention.attention_head_size, attention.scaling = head_dim, head_dim**-0.5
        attention.all_head_size = heads * head_dim
        for role in ("query", "key", "value"):
            _replace(layer, paths[role], nn.Linear(hidden, heads * head_dim))
        _replace(layer, paths["attention_output"], nn.Linear(heads * head_dim, hidden))


def _reshape_ffn(layer: Any, paths: dict, hidden: int, neurons: int) -> None:
    if neurons == 0 and paths is BERT_PATHS:
        layer.intermediate = nn.Identity()
        layer.output = NormOnly(layer.output.LayerNorm)
    elif neurons == 0:
        layer.ffn = ZeroFeedForward()
    else:
        _replace(layer, paths["ffn_in"], nn.Linear(hidden, neurons))
        _replace(layer, paths["ffn_out"], nn.Linear(neurons, hidden))


def _replace(module: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(parent), leaf, new)


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


class PrunedBertModel(_Pruned, BertModel):
    """`BertModel` with a size for every layer."""

    config_class = PrunedBertConfig


class PrunedBertForSequenceClassification(_Pruned, BertForSequenceClassification):
    """`BertForSequenceClassification` with a size for every layer."""

    config_class = PrunedBertConfig


class PrunedBertForMaskedLM(_Pruned, BertForMaskedLM):
    """`BertForMaskedLM` with a size for every layer."""

    config_class = PrunedBertConfig


class PrunedBertForTokenClassification(_Pruned, BertForTokenClassification):
    """`BertForTokenClassification` with a size for every layer."""

    config_class = PrunedBertConfig


class PrunedBertForQuestionAnswering(_Pruned, BertForQuestionAnswering):
    """`BertForQuestionAnswering` with a size for every layer."""

    config_class = PrunedBertConfig


class PrunedRobertaModel(_Pruned, RobertaModel):
    """`RobertaModel` with a size for every layer."""

    config_class = PrunedRobertaConfig


class PrunedRobertaForSequenceClassification(_Pruned, RobertaForSequenceClassification):
    """`RobertaForSequenceClassification` with a size for every layer."""

    config_class = PrunedRobertaConfig


class PrunedRobertaForMaskedLM(_Pruned, RobertaForMaskedLM):
    """`RobertaForMaskedLM` with a size for every layer."""

    config_class = PrunedRobertaConfig


class PrunedRobertaForTokenClassification(_Pruned, RobertaForTokenClassification):
    """`RobertaForTokenClassification` with a size for every layer."""

    config_class = PrunedRobertaConfig


class PrunedRobertaForQuestionAnswering(_Pruned, RobertaForQuestionAnswering):
    """`RobertaForQuestionAnswering` with a size for every layer."""

    config_class = PrunedRobertaConfig


class PrunedDistilBertModel(_Pruned, DistilBertModel):
    """`DistilBertModel` with a size for every layer."""

    config_class = PrunedDistilBertConfig


class PrunedDistilBertForSequenceClassification(_Pruned, DistilBertForSequenceClassification):
    """`DistilBertForSequenceClassification` with a size for every layer."""

    config_class = PrunedDistilBertConfig


class PrunedDistilBertForMaskedLM(_Pruned, DistilBertForMaskedLM):
    """`DistilBertForMaskedLM` with a size for every layer."""

    config_class = PrunedDistilBertConfig


class PrunedDistilBertForTokenClassification(_Pruned, DistilBertForTokenClassification):
    """`DistilBertForTokenClassification` with a size for every layer."""

    config_class = PrunedDistilBertConfig


class PrunedDistilBertForQuestionAnswering(_Pruned, DistilBertForQuestionAnswering):
    """`DistilBertForQuestionAnswering` with a size for every layer."""

    config_class = PrunedDistilBertConfig


# In each: BERT, RoBERTa, DistilBERT, as in CONFIGS.
AUTO_CLASSES: dict[Any, tuple[Any, ...]] = {
    AutoModel: (PrunedBertModel, PrunedRobertaModel, PrunedDistilBertModel),
    AutoModelForSequenceClassification: (
        PrunedBertForSequenceClassification,
        PrunedRobertaForSequenceClassification,
        PrunedDistilBertForSequenceClassification,
    ),
    AutoModelForMaskedLM: (PrunedBertForMaskedLM, PrunedRobertaForMaskedLM, PrunedDistilBertForMaskedLM),
    AutoModelForTokenClassification: (
        PrunedBertForTokenClassification,
        PrunedRobertaForTokenClassification,
        PrunedDistilBertForTokenClassification,
    ),
    AutoModelForQuestionAnswering: (
        PrunedBertForQuestionAnswering,
        PrunedRobertaForQuestionAnswering,
        PrunedDistilBertForQuestionAnswering,
    ),
}
CONFIGS: tuple[Any, ...] = (PrunedBertConfig, PrunedRobertaConfig, PrunedDistilBertConfig)
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
