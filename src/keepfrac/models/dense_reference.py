"""The dense original of a cut model, which its configuration still describes: what every share is counted against."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from keepfrac.models.cut import SIZE_FIELDS, counts_of, shape_of
from keepfrac.models.cuttable import CONFIGS, PRUNED_OF, depth_key
from keepfrac.prune.accounting import Account, account

STOCK_OF = {cut: stock for stock, cut in PRUNED_OF.items()}
STOCK_CONFIGS = {config: config.__mro__[1] for config in CONFIGS}
NOT_STOCK = (*SIZE_FIELDS, "model_type", "architectures", "auto_map", "transformers_version")


def stock_settings(net: PreTrainedModel) -> dict:
    """The settings of a cut model's configuration that a stock one knows too."""
    stock = STOCK_CONFIGS.get(type(net.config))
    own = {name for name in SIZE_FIELDS if hasattr(stock, name)}  # Llama's head_dim
    settings = net.config.to_dict()
    return {name: value for name, value in settings.items() if name in own or name not in NOT_STOCK}


def blueprint(net: PreTrainedModel) -> Callable[[str], PreTrainedModel]:
    """A function from a device to a stock model of the dense shapes, with random weights; it does not hold `net`.

    Args:
        net: cut, or stock already (then it is its own original).
    """
    stock, config = type(net), net.config
    if type(net) in STOCK_OF:
        settings = stock_settings(net)
        settings[depth_key(settings)] = shape_of(net).num_layers
        stock, config = STOCK_OF[type(net)], STOCK_CONFIGS[type(net.config)](**settings)
        config._attn_implementation = net.config._attn_implementation
    pooler = {"add_pooling_layer": False} if getattr(net, "pooler", True) is None else {}

    def build(device: str) -> PreTrainedModel:
        with torch.random.fork_rng(devices=[]), torch.device(device):
            return stock(config, **pooler).eval()

    return build


def dense_original(net: PreTrainedModel) -> PreTrainedModel:
    """The dense original of a cut model, with random weights, on the CPU; a model that was never cut is its own."""
    return blueprint(net)("cpu") if type(net) in STOCK_OF else net


def original_parameters(net: PreTrainedModel) -> int:
    """Parameters of the dense original, tied ones once; of a model that was never cut, its own."""
    of = blueprint(net)("meta") if type(net) in STOCK_OF else net
    words = net.get_input_embeddings().weight
    pruned = (getattr(net.config, "original_vocab_size", None) or len(words)) - len(words)
    return sum(parameter.numel() for parameter in of.parameters()) + pruned * words.shape[1]


def account_of(net: PreTrainedModel) -> Account:
    """Counts a cut model against its dense original: `info.txt`."""
    params = sum(parameter.numel() for parameter in net.parameters())
    pooler = sum(
        parameter.numel()
        for name, parameter in net.named_parameters()
        if parameter.ndim == 2 and ".pooler." in f".{name}"
    )
    return account(shape_of(net), counts_of(net), original_parameters(net), params, pooler)
