"""BERT with a ReLU between its pooler and its classifier, and no dropout there: the head of SparseBERT's released code.

A stock class would load such weights and give other logits without a word, so the model has a type of its own. This
file is whole by itself (torch and transformers alone): `save_pretrained` puts a copy beside the weights, and
`AutoModel*.from_pretrained(folder, trust_remote_code=True)` loads the model where the project is not installed.
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
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
)


class ReluHeadBertConfig(BertConfig):
    """`BertConfig` of a model with this head."""

    model_type = "relu_head_bert"


class LinearOfRelu(nn.Linear):
    """y = W relu(x) + b."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(torch.relu(x))


if TYPE_CHECKING:
    from transformers import PreTrainedModel as _Base
else:
    _Base = object


class _Saved(_Base):
    """Saved together with this file."""

    config_class = ReluHeadBertConfig

    def save_pretrained(self, save_directory, *args, **kwargs) -> None:
        """Saves the model and a copy of this file, so that `trust_remote_code=True` loads it anywhere."""
        module = __name__.rpartition(".")[2]
        names = {auto.__name__: f"{module}.{cls.__name__}" for auto, cls in AUTO_CLASSES.items()}
        self.config.auto_map = {"AutoConfig": f"{module}.{ReluHeadBertConfig.__name__}", **names}
        super().save_pretrained(save_directory, *args, **kwargs)
        here = Path(str(sys.modules[type(self).__module__].__file__))
        shutil.copyfile(here, Path(save_directory) / here.name)


class ReluHeadBertModel(_Saved, BertModel):
    """The encoder of such a model."""


class ReluHeadBertForSequenceClassification(_Saved, BertForSequenceClassification):
    """`BertForSequenceClassification` with this head."""

    def __init__(self, config) -> None:
        super().__init__(config)
        self.classifier = LinearOfRelu(config.hidden_size, config.num_labels)
        self.dropout = nn.Identity()
        self.post_init()


AUTO_CLASSES: dict[Any, Any] = {
    AutoModel: ReluHeadBertModel,
    AutoModelForSequenceClassification: ReluHeadBertForSequenceClassification,
}


def with_relu_head(net: BertForSequenceClassification) -> ReluHeadBertForSequenceClassification:
    """Returns the model of the same weights and mode with this head.

    Raises:
        ValueError: it is not a stock BERT classifier.
    """
    if isinstance(net, ReluHeadBertForSequenceClassification):
        return net
    if type(net) is not BertForSequenceClassification:
        raise ValueError(f"a {type(net).__name__} cannot have this head: it is BertForSequenceClassification's")
    settings = {key: value for key, value in net.config.to_dict().items() if key != "model_type"}
    config = ReluHeadBertConfig(**settings)
    config._attn_implementation = net.config._attn_implementation
    with torch.random.fork_rng(devices=[]):
        own = ReluHeadBertForSequenceClassification(config)
    own.load_state_dict(net.state_dict())
    parameter = next(net.parameters())
    return own.to(parameter.device, parameter.dtype).train(net.training)


def register() -> None:
    """Makes `AutoConfig` and the `AutoModel*` classes know the model in this process."""
    AutoConfig.register(ReluHeadBertConfig.model_type, ReluHeadBertConfig, exist_ok=True)
    for auto, cls in AUTO_CLASSES.items():
        auto.register(ReluHeadBertConfig, cls, exist_ok=True)


# A copy beside weights is found through auto_map; it must not take the name from an installed project's own class.
if not __name__.startswith("transformers_modules"):
    register()
