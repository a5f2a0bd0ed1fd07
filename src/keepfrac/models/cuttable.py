"""Which stock classes have a class for their cut models: encoders of `pruned`, decoders of `pruned_decoders`."""

from __future__ import annotations

from transformers import GPT2Config, LlamaConfig

from keepfrac.models import pruned, pruned_decoders
from keepfrac.prune.structure import ModelShape

CONFIGS = (*pruned.CONFIGS, *pruned_decoders.CONFIGS)
PRUNED_OF = {**pruned.PRUNED_OF, **pruned_decoders.PRUNED_OF}
"""Stock class -> the class of its cut models."""
DEPTHS = ("n_layers", "n_layer", "num_hidden_layers")


def depth_key(settings: dict) -> str:
    """Returns the name by which a configuration's settings give the number of layers."""
    return next(name for name in DEPTHS if name in settings)


def decoder_shape(config) -> ModelShape | None:
    """Returns the shape of the dense decoder that a configuration describes; None for an encoder's."""
    if not isinstance(config, GPT2Config | LlamaConfig):
        return None
    llama = isinstance(config, LlamaConfig)
    heads, hidden = config.num_attention_heads, config.hidden_size
    units = config.num_key_value_heads if llama else heads
    return ModelShape(
        num_layers=getattr(config, "original_layers", None) or config.num_hidden_layers,
        hidden=hidden,
        num_heads=units,
        head_dim=getattr(config, "head_dim", None) or hidden // heads,
        num_neurons=config.intermediate_size if llama else config.n_inner or 4 * hidden,
        group=heads // units,
        gated=llama,
        causal=True,
    )
