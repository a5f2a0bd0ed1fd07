"""Models whose layers differ in size: those of `families` with heads, neurons or layers cut away.

Together with `families.py` this file is whole by itself (torch and transformers alone): `save_pretrained` puts a copy
of both beside the weights, and `AutoModel*.from_pretrained(folder, trust_remote_code=True)` loads the model where the
project that made it is not installed. The classes are made from the table: `PrunedBertConfig`, `PrunedBertModel`,
`PrunedBertForSequenceClassification` ... The configuration's own sizes (`num_attention_heads`, the intermediate size)
stay those of the dense original; what is left of it stands in these fields:

    head_dim          width of one head
    layer_heads       heads of each layer; where query heads share a key-value head, the key-value heads, each with all
                      of its query heads; 0 = the attention sub-layer is removed, its layer norm stays
    layer_ffn         feed-forward neurons of each layer; 0 = the same for the feed-forward sub-layer
    low_rank          module name inside the encoder -> rank, for linears held as two factors q(p(x))
    original_layers   number of layers of the dense original, where whole layers were dropped
    first_norm        whether the first layer has a LayerNorm in front of its attention, where the original's has none
    head_numbers      which heads of the dense original each layer has, where a bias has a place for each of these

Parameter names are those of the stock classes.
"""

from __future__ import annotations

import copy
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
)
from transformers.pytorch_utils import Conv1D

from .families import FAMILIES, PRUNED, Family  # noqa: TID252 - the copy beside weights is no package

if TYPE_CHECKING:
    from transformers import PreTrainedModel as _Base
else:
    _Base = object

SIZES = {
    "head_dim": "int | None",
    "layer_heads": "list[int] | None",
    "layer_ffn": "list[int] | None",
    "low_rank": "dict[str, int] | None",
    "original_layers": "int | None",
    "first_norm": "bool | None",
    "head_numbers": "list[list[int]] | None",
}
"""Fields that the configuration of a cut model has beside those of the stock one."""
ENCODERS: tuple[Any, ...] = (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForMaskedLM,
    AutoModelForTokenClassification,
    AutoModelForQuestionAnswering,
)
DECODERS: tuple[Any, ...] = (AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification)


class LowRankLinear(nn.Module):
    """y = q(p(x)): `p` (inputs -> rank) without bias, `q` (rank -> outputs) with the linear's bias."""

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.p = nn.Linear(in_features, rank, bias=False)
        self.q = nn.Linear(rank, out_features, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.q(self.p(x))


class SomeHeads(_Base):
    """Before a stock attention: of a bias with a place for every head of the dense model it takes its own heads'."""

    head_numbers: list[int]

    def forward(self, hidden_states, attention_mask=None, position_bias=None, *args, **kwargs):
        own = None if position_bias is None else position_bias[:, self.head_numbers]
        return super().forward(hidden_states, attention_mask, own, *args, **kwargs)


class NoAttention(nn.Module):
    """Stands where an attention was: gives zeros, and keeps count of the tokens in a decoder's cache.

    The first layer's cache is what a model reads its position from, so an empty one would break generation.
    """

    def __init__(self, layer_idx: int | None) -> None:
        super().__init__()
        self.layer_idx = layer_idx

    def forward(self, hidden_states: torch.Tensor, *args, past_key_values=None, **kwargs):
        if past_key_values is not None:
            seen = hidden_states.new_zeros(len(hidden_states), 1, hidden_states.shape[1], 1)
            past_key_values.update(seen, seen, self.layer_idx)
        return torch.zeros_like(hidden_states), None


class NoFeedForward(nn.Module):
    """A removed feed-forward block, or what is left of one in its layer: gives zeros."""

    is_removed = True

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(hidden_states)


class NormOnly(nn.Module):
    """The output block of a removed sub-layer: the layer norm of the residual alone."""

    def __init__(self, layer_norm: nn.Module) -> None:
        super().__init__()
        self.LayerNorm = layer_norm

    def forward(self, hidden_states: torch.Tensor, input_tensor: torch.Tensor) -> torch.Tensor:
        return self.LayerNorm(input_tensor)


class NormedInput(NoAttention):
    """A removed attention that has the residual and its layer norm inside: that of the input."""

    def __init__(self, layer_norm: nn.Module) -> None:
        super().__init__(None)
        self.LayerNorm = layer_norm

    def forward(self, hidden_states: torch.Tensor, *args, **kwargs):
        return self.LayerNorm(hidden_states), None


class ResidualOnly(nn.Module):
    """The output block of a removed sub-layer whose layer norm is in front: the residual alone."""

    def forward(self, hidden_states: torch.Tensor, input_tensor: torch.Tensor) -> torch.Tensor:
        return input_tensor


def reshape(model: Any, config: Any) -> None:
    """Gives the layers the sizes that the configuration records; in `__init__`, before weights are loaded.

    Raises:
        ValueError: a list of another length than the layers, a negative size, an unknown low-rank module.
    """
    base, family = getattr(model, model.base_model_prefix, model), FAMILIES[config.model_type.removeprefix(PRUNED)]
    layers = base.get_submodule(family.layers)
    if config.low_rank and family.causal:
        raise ValueError(f"low_rank is {config.low_rank}: decoders have no low-rank linears")
    for name in ("layer_heads", "layer_ffn"):
        sizes = getattr(config, name)
        if sizes is not None and (len(sizes) != len(layers) or min(sizes) < 0):
            raise ValueError(f"{name} is {sizes}: it must give one size of at least 0 for each of {len(layers)} layers")
    if family.bare_first and config.first_norm:
        _replace(layers[0], family.layer_norms[0], copy.deepcopy(layers[0].get_submodule(family.layer_norms[1])))
    for i, layer in enumerate(layers):
        if config.layer_heads is not None:
            _reshape_attention(layer, family, config, config.layer_heads[i])
        if family.head_bias and config.head_numbers is not None and config.head_numbers[i]:
            _take_heads(layer.get_submodule(family.attention), config.head_numbers[i])
        if config.layer_ffn is not None:
            _reshape_ffn(layer, family, config.hidden_size, config.layer_ffn[i])
    for name, rank in (config.low_rank or {}).items():
        linear = base.get_submodule(name)
        if not isinstance(linear, nn.Linear) or rank < 1:
            raise ValueError(f"low_rank has {name}: {rank}, which must be a linear of the encoder and at least 1")
        _replace(base, name, LowRankLinear(linear.in_features, linear.out_features, rank, linear.bias is not None))


def _reshape_attention(layer: Any, family: Family, config: Any, heads: int) -> None:
    head_dim = config.head_dim or config.hidden_size // config.num_attention_heads
    group = config.num_attention_heads // (getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
    attention, width = layer.get_submodule(family.attention), heads * head_dim
    if heads == 0:
        _remove(layer, family, 0, NoAttention(getattr(attention, "layer_idx", None)))
        attention = layer.get_submodule(family.attention)
        setattr(attention, family.head_dim, head_dim)
    else:
        widths = {family.query: width * group, family.key: width, family.value: width}
        packed = 3 if family.query == family.key else 1
        for path, outputs in widths.items():
            _resize(layer, path, config.hidden_size, packed * outputs)
        for path in family.positions:
            if hasattr(attention, path.rpartition(".")[2]):
                _resize(layer, path, config.hidden_size, width)
        _resize(layer, family.attention_output, width * group, config.hidden_size)
    for name, size in ((family.num_heads, heads), (family.width, width)):
        if name is not None:
            setattr(attention, name, size)


def _take_heads(attention: Any, numbers: list[int]) -> None:
    name = f"SomeHeads{type(attention).__name__}"
    attention.__class__ = globals().get(name) or _made(name, SomeHeads, type(attention))
    attention.head_numbers = numbers


def _reshape_ffn(layer: Any, family: Family, hidden: int, neurons: int) -> None:
    if neurons == 0:
        _remove(layer, family, 1, NoFeedForward())
        return
    sources = [path for path in (family.ffn_gate, family.ffn_in) if path is not None]
    for path in dict.fromkeys(sources):
        _resize(layer, path, hidden, sources.count(path) * neurons)
    _resize(layer, family.ffn_out, neurons, hidden)


def _remove(layer: Any, family: Family, number: int, nothing: nn.Module) -> None:
    """Puts `nothing` in the place of a sub-layer, 0 or 1; where a module adds the residual, it gives that alone.

    The layer norm stays, also where it was a part of what is gone.
    """
    path = (family.attention, family.feed_forward)[number]
    output = (family.attention_output, family.ffn_out)[number]
    norm = family.layer_norms[number]
    layer_norm, kind = layer.get_submodule(norm), (family.removed or ())[number]
    if norm.startswith(f"{path}."):
        nothing.add_module(norm.rpartition(".")[2], layer_norm)
    _replace(layer, path, nothing)
    if kind == "zeros" and not output.startswith(f"{path}."):
        _replace(layer, output, NoFeedForward())
    elif kind == "norm":
        parent = norm.rpartition(".")[0]
        _replace(layer, parent, NormedInput(layer_norm) if parent == path else NormOnly(layer_norm))
    elif kind == "residual":
        _replace(layer, output.rpartition(".")[0], ResidualOnly())


def _resize(layer: nn.Module, path: str, inputs: int, outputs: int) -> None:
    linear: Any = layer.get_submodule(path)
    if isinstance(linear, Conv1D):
        _replace(layer, path, Conv1D(outputs, inputs))
    else:
        _replace(layer, path, nn.Linear(inputs, outputs, bias=linear.bias is not None))


def _replace(module: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(parent), leaf, new)


CARD = "README.md"


def _card(model_class: type) -> str:
    """What the folder says of itself: its class is no stock one, and how it is loaded."""
    autos = [auto.__name__ for classes in CLASSES.values() for auto, cls in classes.items() if cls is model_class]
    auto = autos[0] if autos else "AutoModel"
    return (
        f"# {model_class.__name__}\n\nNo stock class holds this model. Its own stands in `pruned.py` and `families.py`"
        " of this folder, which\nneed torch and transformers alone: everything that loads it needs"
        " `trust_remote_code=True`, `pipeline` too.\n\n"
        f"    from transformers import {auto}\n"
        f'    model = {auto}.from_pretrained("<this folder>", trust_remote_code=True)\n'
    )


class _Delivered(_Base):
    """Before a stock class: saved together with this file and the table."""

    def save_pretrained(self, save_directory, *args, **kwargs) -> None:
        """Saves the model and a copy of both files, so that `trust_remote_code=True` loads it anywhere."""
        self.config.auto_map = auto_map(type(self.config))
        super().save_pretrained(save_directory, *args, **kwargs)
        here = Path(str(sys.modules[__name__].__file__))
        for name in (here.name, "families.py"):
            shutil.copyfile(here.with_name(name), Path(save_directory) / name)
        (Path(save_directory) / CARD).write_text(_card(type(self)), encoding="utf-8")


class _Pruned(_Delivered):
    """Before a stock class: its model, with the layers reshaped."""

    def __init__(self, config, *args, **kwargs) -> None:
        super().__init__(config, *args, **kwargs)
        reshape(self, config)
        self.post_init()


class LinearOfRelu(nn.Linear):
    """y = W relu(x) + b."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(torch.relu(x))


class _ReluHead(_Delivered):
    """Before a stock BERT: a ReLU between its pooler and its classifier, and no dropout there.

    This is the head of SparseBERT's released code. A stock class would load such weights and give other logits without
    a word, so the model has a type of its own.
    """

    def __init__(self, config, *args, **kwargs) -> None:
        super().__init__(config, *args, **kwargs)
        if hasattr(self, "classifier"):
            self.classifier = LinearOfRelu(config.hidden_size, config.num_labels)
            self.dropout = nn.Identity()
        self.post_init()


CLASSES: dict[Any, dict[Any, Any]] = {}
"""Configuration class -> Auto class -> class of the model."""
PRUNED_OF: dict[Any, Any] = {}
"""Stock class, of a configuration or a model -> the class of its cut models."""


def _made(name: str, *bases: type, **content: Any) -> Any:
    """Returns a new class, which this module has from now on."""
    made = type(name, bases, {"__module__": __name__, **content})
    globals()[name] = made
    return made


def _make_cut(model_type: str, family: Family) -> None:
    """Makes the classes of a family's cut models."""
    stock = CONFIG_MAPPING[model_type]
    special = {"head_numbers": family.head_bias, "first_norm": family.bare_first}
    sizes = {name: kind for name, kind in SIZES.items() if special.get(name, not hasattr(stock, name))}
    content = {"model_type": f"{PRUNED}{model_type}", "__annotations__": sizes, **dict.fromkeys(sizes)}
    PRUNED_OF[stock] = config = _made(f"Pruned{stock.__name__}", stock, **content)
    CLASSES[config] = {}
    for auto in DECODERS if family.causal else ENCODERS:
        if stock not in auto._model_mapping:
            continue
        net = auto._model_mapping[stock]
        PRUNED_OF[net] = CLASSES[config][auto] = _made(f"Pruned{net.__name__}", _Pruned, net, config_class=config)


def _make_relu_head() -> None:
    config = _made("ReluHeadBertConfig", BertConfig, model_type="relu_head_bert")
    nets = {auto: auto._model_mapping[BertConfig] for auto in (AutoModel, AutoModelForSequenceClassification)}
    CLASSES[config] = {
        auto: _made(f"ReluHead{net.__name__}", _ReluHead, net, config_class=config) for auto, net in nets.items()
    }


for _model_type, _family in FAMILIES.items():
    if _family.removed is not None and _model_type in CONFIG_MAPPING:  # which an older Transformers may not know
        _make_cut(_model_type, _family)
_make_relu_head()
STOCK_OF = {cut: stock for stock, cut in PRUNED_OF.items()}
"""The other way round."""


def auto_map(config_class: type) -> dict[str, str]:
    """Returns what config.json must say for every head, so that any Auto class finds its model in the folder."""
    module = __name__.rpartition(".")[2]
    names = {auto.__name__: f"{module}.{cls.__name__}" for auto, cls in CLASSES[config_class].items()}
    return {"AutoConfig": f"{module}.{config_class.__name__}", **names}


def register_classes() -> None:
    """Makes `AutoConfig` and the `AutoModel*` classes know the models in this process."""
    for config_class, classes in CLASSES.items():
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        for auto, cls in classes.items():
            auto.register(config_class, cls, exist_ok=True)


# A copy beside weights is found through auto_map; it must not take the name from an installed project's own class.
if not __name__.startswith("transformers_modules"):
    register_classes()
