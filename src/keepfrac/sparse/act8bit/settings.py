"""The settings of `late`, and the formats in which one layer stores its activations."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from keepfrac.errors import UserError
from keepfrac.settings import choice, count, flag, settings
from keepfrac.sparse.kernels import CHOICES
from keepfrac.sparse.protocol import BackwardSaver

ROWS = ("wta", "grad", "random")
CONTEXTS = ("save", "recompute")
BITS = ("8bit", "bf16", "exact")


@dataclass(frozen=True)
class StorageFormat:
    """How one layer stores what its backward pass needs.

    Args:
        normalized: "8bit", "bf16" or "exact" (no rounding), for the normalised rows of its LayerNorms.
        attention: the same for query, key, value, and the context.
        pre_activation: the same for what enters the feed-forward's activation function.
        context: "save" the attention's context, or "recompute" it.
    """

    normalized: str
    attention: str
    pre_activation: str
    context: str = "save"

    def __post_init__(self) -> None:
        for name, allowed in (
            ("normalized", BITS),
            ("attention", BITS),
            ("pre_activation", BITS),
            ("context", CONTEXTS),
        ):
            if (value := getattr(self, name)) not in allowed:
                raise UserError(f"{name}={value!r}: choose among {', '.join(allowed)}")

    def dtype(self, name: str, own: torch.dtype) -> torch.dtype:
        """Returns the dtype to store in, a format of kernels/plain.py.

        Args:
            name: "normalized", "attention" or "pre_activation".
            own: the dtype that the numbers have, in which "exact" stores them.
        """
        codes = torch.uint8 if name == "pre_activation" else torch.int8
        return {"8bit": codes, "bf16": torch.bfloat16, "exact": own}[getattr(self, name)]


# "mixed" is the best of plain PyTorch, where 8-bit codes of the widest activation cost more time than they are worth
STORES: dict[str, StorageFormat] = {
    "8bit": StorageFormat("8bit", "8bit", "8bit"),
    "mixed": StorageFormat("8bit", "8bit", "bf16"),
    "bf16": StorageFormat("bf16", "bf16", "bf16"),
    "exact": StorageFormat("exact", "exact", "exact"),
}


@settings
class Act8bitSettings(BackwardSaver.Settings):
    """How a network's blocks store, and what their weight gradients are made of.

    keep_frac is the share of the real tokens whose rows form each weight gradient. It sets arithmetic alone: the bytes
    come from `store`.
    """

    rows: str = choice(
        "how rows are chosen when their gradient has arrived: wta, the largest for certain, the rest by chance with a"
        " factor that makes the estimate unbiased; grad, the largest, unscaled (biased); random, uniform",
        *ROWS,
    )
    store: str = choice("how activations are stored: mixed, what enters the activation function in bf16", *STORES)
    context: str = choice("attention's output: saved, or recomputed in the backward pass (one small matmul)", *CONTEXTS)
    skip_zero_rows: bool = flag(
        "whether rows whose gradient is zero (padding, all but the first token at the top of a classifier) are left"
        " out everywhere: exact, and faster where there are many"
    )
    kernels: str = choice("who does the elementwise work: see `kernels.prepare`", *CHOICES)
    selection_seed: int = count("seed of the random choices and of the dropout masks", least=0)

    @property
    def storage(self) -> StorageFormat:
        """Storage of each layer, before a budget changes it."""
        return replace(STORES[self.store], context=self.context)


DEFAULTS: dict[str, Any] = {
    "name": "late",
    "keep_frac": 0.3,
    "rows": "wta",
    "store": "8bit",
    "context": "save",
    "skip_zero_rows": True,
    "kernels": "auto",
    "selection_seed": 0,
}
"""What conf/backward/late.yaml says, which is not a part of the installed package."""
