"""SparseBERT's head on a classifier that has another: a ReLU behind the pooler, see `pruned`."""

from __future__ import annotations

from transformers import AutoModelForSequenceClassification, BertForSequenceClassification, PreTrainedModel

from keepfrac.models.cut import empty_like, settings_for
from keepfrac.models.pruned import CLASSES

CONFIG = next(config for config in CLASSES if config.model_type == "relu_head_bert")
CLASSIFIER = CLASSES[CONFIG][AutoModelForSequenceClassification]


def with_relu_head(net: PreTrainedModel) -> PreTrainedModel:
    """Returns the model of the same weights and mode with this head.

    Raises:
        ValueError: it is not a stock BERT classifier.
    """
    if isinstance(net, CLASSIFIER):
        return net
    if type(net) is not BertForSequenceClassification:
        raise ValueError(f"a {type(net).__name__} cannot have this head: it is BertForSequenceClassification's")
    config = CONFIG(**settings_for(CONFIG, net.config))
    config._attn_implementation = net.config._attn_implementation
    own = empty_like(net, CLASSIFIER, config)
    own.load_state_dict(net.state_dict())
    return own.train(net.training)
