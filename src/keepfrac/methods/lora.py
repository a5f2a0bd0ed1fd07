"""LoRA: y = W x + (alpha / r) U V x. W stays as it was; U (which begins at 0) and V learn, and the new classifier.

A frozen linear computes and saves nothing for its weight's gradient. On a model with masks the default merge keeps
their zeros. `method=peft_lora` is Hugging Face PEFT's implementation of the same, for comparison.

keep_frac is 1: everything is kept.

Source: Hu et al. 2022. Departure: V is drawn with a standard deviation of 0.02, as DSEE draws it.
"""

from keepfrac.training.adapter_tuning import AdapterTuning


class Lora(AdapterTuning):
    """Low-rank updates of frozen linears."""
