"""Settings of the loop that every method shares; they are keys of the top level of a configuration."""

from keepfrac.settings import Settings, count, number, settings, share


@settings
class LoopSettings(Settings):
    """How fast every method learns, and the options of `training.options`; it imports nothing heavy."""

    lr: float = share("peak learning rate of AdamW", "(]")
    weight_decay: float = number("decay of all weights but biases and those of normalisations")
    warmup: float = share("share of the steps in which the rate rises linearly", "[)")
    clip: float | None = number("largest norm of the gradient; null: no clipping", ends="(]", null=True)
    fgm: float | None = number("norm of an attack on the word embeddings; null: none", ends="(]", null=True)
    ema: float | None = share("decay of the average of the weights that is delivered; null: none", "()", null=True)
    r_drop: float | None = number("weight of the divergence of two passes; null: one pass", ends="(]", null=True)
    layer_decay: float | None = share("factor of lr from a layer to the one below; null: one rate", "(]", null=True)


@settings
class Loop(LoopSettings):
    """The same, and how long."""

    total_steps: int = count("optimizer steps of the whole fit", least=0)
