"""The dense original of a cut model, which its configuration still describes: what every share is counted against."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from keepfrac.models.anatomy import family_of
from keepfrac.models.cut import counts_of, depths, settings_for, shape_of
from keepfrac.models.pruned import STOCK_OF
from keepfrac.prune.accounting import Account, account


def stock_config(net: PreTrainedModel, **sizes):
    """Returns the stock configuration of a cut model, with other sizes.

    Of another number of layers it says of each what its class does, not what the cut model's said.
    """
    stock, family = STOCK_OF[type(net.config)], family_of(net)
    settings = settings_for(stock, net.config)
    if sizes.get(family.depth, settings[family.depth]) != settings[family.depth]:
        settings = {name: value for name, value in settings.items() if name not in family.layer_lists}
    config = stock(**settings | sizes)
    config._attn_implementation = net.config._attn_implementation
    return config


def blueprint(net: PreTrainedModel) -> Callable[[str], PreTrainedModel]:
    """Returns a function from a device to a stock model of the dense shapes, with random weights; it holds no `net`.

    Args:
        net: cut, or stock already (then it is its own original).
    """
    stock, config = type(net), net.config
    if type(net) in STOCK_OF:
        stock, config = STOCK_OF[type(net)], stock_config(net, **depths(net, shape_of(net).num_layers))
    pooler = {"add_pooling_layer": False} if getattr(net, "pooler", True) is None else {}

    def build(device: str) -> PreTrainedModel:
        with torch.random.fork_rng(devices=[]), torch.device(device):
            return stock(config, **pooler).eval()

    return build


def dense_original(net: PreTrainedModel) -> PreTrainedModel:
    """Returns the dense original of a cut model, with random weights, on the CPU; a model never cut is its own."""
    return blueprint(net)("cpu") if type(net) in STOCK_OF else net


def original_parameters(net: PreTrainedModel) -> int:
    """Returns the parameters of the dense original, tied ones once; of a model that was never cut, its own."""
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
