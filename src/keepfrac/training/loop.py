"""Settings of the loop that every method shares; they stand in the top level of a configuration."""

from keepfrac.settings import Settings, count, number, settings, share


@settings
class Loop(Settings):
    """How long and how fast every method learns, and the options of `training.options`."""

    lr: float = share("peak learning rate of AdamW", "(]")
    weight_decay: float = number("decay of all weights but biases and those of normalisations")
    warmup: float = share("share of the steps in which the rate rises linearly", "[)")
    clip: float | None = number("largest norm of the gradient; null: no clipping", ends="(]", null=True)
    total_steps: int = count("optimizer steps of the whole fit", least=0)
    fgm: float | None = number("norm of an attack on the word embeddings; null: none", ends="(]", null=True)
    ema: float | None = share("decay of the average of the weights that is delivered; null: none", "()", null=True)
    r_drop: float | None = number("weight of the divergence of two passes; null: one pass", ends="(]", null=True)
    layer_decay: float | None = share("factor of lr from a layer to the one below; null: one rate", "(]", null=True)
