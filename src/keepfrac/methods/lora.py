"""LoRA: y = W x + (alpha / r) U V x. W stays as it was; U (which begins at 0) and V learn, and the new classifier.

A frozen linear computes and saves nothing for its weight's gradient. On a model with masks the default merge keeps
their zeros. `method=peft_lora` is Hugging Face PEFT's implementation of the same, for comparison.

keep_frac is 1: everything is kept.

Source: Hu et al. 2022. Departure: V is drawn with a standard deviation of 0.02, as DSEE draws it.
"""

from keepfrac.training.adapter_tuning import Adaptation, Adapting, check_adaptation


class Lora(Adapting):
    """Low-rank updates of frozen linears.

    Args:
        name: see Adapting, as for all others.
    """

    def __init__(self, *, net, task, loop, name, keep_frac, targets, rank, alpha, dropout, train_head, adapter, merge):
        adaptation = Adaptation(targets, rank, alpha, dropout, train_head, adapter, merge)
        super().__init__(net, task, loop, name, keep_frac, adaptation)

    @staticmethod
    def check(settings: dict) -> None:
        """Checks what needs no model."""
        check_adaptation(settings)
