"""Attention scores before the softmax, recorded while a model computes with the attention that it has.

Transformers hands out probabilities, and its fused attention not even these. Here an attention function of our own is
registered with its AttentionInterface for each implementation that is met: it calls that implementation and, where the
module is being recorded, also forms the scores. Attention that computes by itself is made to ask the interface for the
time (`models.own_attention`). So the fused kernels stay, the price is one more product Q K^T,
and outside of `recorded` a model is untouched.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from keepfrac.errors import UserError
from keepfrac.models.anatomy import check_attention_interface
from keepfrac.models.own_attention import asking

PREFIX = "keepfrac_scores_"
ATTRIBUTE = "recorded_scores"
INSTEAD = "choose distill=hidden (or distill=logits), or set distill.w_att=0"


@contextmanager
def recorded(net: PreTrainedModel, attentions: Mapping[int, str]) -> Iterator[dict[int, Tensor]]:
    """Collects the scores of the forward passes inside the block.

    Args:
        net: the model.
        attentions: path of the module that calls the attention function, by the number that it is known by; several
            numbers where it is called several times, in their order.

    Yields:
        Q K^T * scaling, plus a bias of positions where the model has one, by number; (batch, heads, length, length),
        without any mask; with their graph.

    Raises:
        UserError: the model's attention does not go through the AttentionInterface.
    """
    found: dict[int, Tensor] = {}
    if not attentions:
        yield found
        return
    check_recordable(net)
    numbers: dict[str, list[int]] = {}
    for number, path in attentions.items():
        numbers.setdefault(path, []).append(number)
    modules = [net.get_submodule(path) for path in numbers]
    configs = {id(m.config): m.config for m in net.modules() if hasattr(m, "config")}.values()
    bases = [config._attn_implementation for config in configs]
    for module, own in zip(modules, numbers.values(), strict=True):
        setattr(module, ATTRIBUTE, (found, own))
    for config, base in zip(configs, bases, strict=True):
        config._attn_implementation = _recorder(base or "eager")
    try:
        with asking(net, tuple(attentions.values())):
            yield found
    finally:
        for config, base in zip(configs, bases, strict=True):
            config._attn_implementation = base
        for module in modules:
            delattr(module, ATTRIBUTE)


def check_recordable(net: nn.Module) -> None:
    """Refuses a model whose attention scores cannot be recorded.

    Raises:
        UserError: its attention does not go through the AttentionInterface.
    """
    check_attention_interface(net, "attention scores", INSTEAD)


def check_recorded(attentions: Mapping[int, str], found: Mapping[int, Tensor]) -> None:
    """Holds that a forward pass left the scores of every attention that was to be recorded.

    Raises:
        UserError: one called another attention function.
    """
    if missing := [path for number, path in attentions.items() if number not in found]:
        raise UserError(f"no attention scores came from {', '.join(missing)}: {INSTEAD}")


def _recorder(base: str) -> str:
    """Returns the name of the recording twin of an attention implementation, registered on first use."""
    name = f"{PREFIX}{base}"
    if name not in AttentionInterface():
        AttentionMaskInterface.register(name, AttentionMaskInterface()[base])
        AttentionInterface.register(name, functools.partial(_record, base))
    return name


def _record(
    base: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    position_bias: Tensor | None = None,
    **kwargs,
) -> tuple[Tensor, Tensor | None]:
    """Computes attention as `base` does; keeps the scores where the module is recorded."""
    if (recorded := getattr(module, ATTRIBUTE, None)) is not None:
        found, numbers = recorded
        number = next((one for one in numbers if one not in found), numbers[-1])
        shared = query.shape[1] // key.shape[1]  # queries that read the same key
        keys = key.repeat_interleave(shared, 1) if shared > 1 else key
        scores = torch.matmul(query, keys.transpose(2, 3)) * (scaling or query.size(-1) ** -0.5)
        found[number] = scores if position_bias is None else scores + position_bias
    return _function(base, module)(module, query, key, value, attention_mask, scaling=scaling, **kwargs)


def _function(base: str, module: nn.Module) -> Callable:
    if base == "eager":  # each model file has its own
        return sys.modules[type(module).__module__].eager_attention_forward
    return AttentionInterface()[base]
