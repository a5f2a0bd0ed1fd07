"""What `late` can be told, and the numbers that one call of a block needs."""

import math
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import nn

from keepfrac.errors import UserError
from keepfrac.sparse.kernels import CHOICES
from keepfrac.sparse.late.noise import mixed

ROWS = ("wta", "grad", "random")
CONTEXTS = ("save", "recompute")
# what draws by chance inside a block: the output's dropout, the attention's (per sample), the two choices of rows
OUTPUT, PROBABILITIES, ROWS_OUT, ROWS_IN = range(4)


class Formats(NamedTuple):
    """How each kind of saved activation is stored: a dtype as in kernels/plain.py."""

    hat: torch.dtype  # the normalised rows of a LayerNorm
    attention: torch.dtype  # query, key, value, and the context
    inner: torch.dtype  # what enters the feed-forward's activation


BITS = ("8bit", "bf16", "exact")


@dataclass(frozen=True)
class Storing:
    """How one layer stores what its backward pass needs.

    Args:
        hat: "8bit", "bf16" or "exact" (no rounding), for the normalised rows of its LayerNorms.
        attention: the same for query, key, value, and the context.
        inner: the same for what enters the feed-forward's activation function.
        context: "save" the attention's context, or "recompute" it.
    """

    hat: str
    attention: str
    inner: str
    context: str = "save"

    def __post_init__(self) -> None:
        for name in ("hat", "attention", "inner"):
            _check_choice(name, getattr(self, name), BITS)
        _check_choice("context", self.context, CONTEXTS)

    def formats(self, stream: torch.dtype, compute: torch.dtype) -> Formats:
        """Returns the dtypes to store in; for "exact" those that the numbers have anyway."""
        own = {"bf16": torch.bfloat16}
        return Formats(
            {"8bit": torch.int8, "exact": stream, **own}[self.hat],
            {"8bit": torch.int8, "exact": compute, **own}[self.attention],
            {"8bit": torch.uint8, "exact": compute, **own}[self.inner],
        )


def _check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"{name}={value!r}: choose among {', '.join(allowed)}")


# "mixed" is the best of plain PyTorch, where 8-bit codes of the widest activation cost more time than they are worth
STORES: dict[str, Storing] = {
    "8bit": Storing("8bit", "8bit", "8bit"),
    "mixed": Storing("8bit", "8bit", "bf16"),
    "bf16": Storing("bf16", "bf16", "bf16"),
    "exact": Storing("exact", "exact", "exact"),
}


@dataclass(frozen=True)
class Settings:
    """How a network's blocks store and what their weight gradients are made of.

    Args:
        keep_frac: share of the real tokens whose rows form each weight gradient, in (0, 1]. It sets arithmetic alone:
            the bytes come from `store`.
        rows: how they are chosen when their gradient has arrived. "wta": the largest for certain, the rest by chance
            with a factor that makes the estimate unbiased; "grad": the largest, unscaled (biased); "random": uniform.
        store: "8bit", "mixed" (what enters the activation function in bfloat16, the rest in 8 bits), "bf16" or
            "exact" (nothing is rounded).
        context: "save" the attention's context, or "recompute" it in the backward pass (one small matmul more).
        skip_zero_rows: leave out the rows whose gradient is zero (padding, all but the first token at the top of a
            classifier). Exact, and faster where there are many.
        kernels: "auto", "cpp", "native", "triton" or "torch"; see `kernels.prepare`.

    Raises:
        UserError: a value out of its range.
    """

    keep_frac: float
    rows: str
    store: str
    context: str
    skip_zero_rows: bool
    kernels: str

    def __post_init__(self) -> None:
        if not (isinstance(self.keep_frac, int | float) and 0 < self.keep_frac <= 1):
            raise UserError(f"keep_frac={self.keep_frac!r}: a share in (0, 1], of the real tokens")
        if not isinstance(self.skip_zero_rows, bool):
            raise UserError(f"skip_zero_rows={self.skip_zero_rows!r}: true or false")
        _check_choice("rows", self.rows, ROWS)
        _check_choice("store", self.store, tuple(STORES))
        _check_choice("context", self.context, CONTEXTS)
        _check_choice("kernels", self.kernels, CHOICES)

    @property
    def storing(self) -> Storing:
        """How each layer stores, where nothing else is said."""
        return replace(STORES[self.store], context=self.context)


@dataclass
class Tally:
    """What one block has done so far, in numbers.

    Args:
        real_rows: real tokens that have come by in backward passes.
        used_rows: rows that its weight gradients were made of, in the mean over its matmuls.
        saved_bytes: what the last forward pass stored for this block, parameters and shared inputs aside.
        dense_bytes: what PyTorch would have stored for it.
    """

    real_rows: float = 0.0
    used_rows: float = 0.0
    saved_bytes: int = 0
    dense_bytes: int = 0

    def add(self, real: int, *used: int) -> None:
        """Counts one backward pass: `used` rows for each choice that it made."""
        if used:
            self.real_rows += real
            self.used_rows += sum(used) / len(used)


@dataclass(frozen=True)
class Plan:
    """The numbers of one call of one block: all that a Function keeps on its context besides saved tensors.

    Args:
        settings: what the user asked for.
        storing: how this layer stores.
        shape: (batch, length).
        real: how many of the batch * length tokens are real.
        eps: of the LayerNorm.
        p: dropout of the block's output.
        seed: of this call; the masks and the choice of rows are regenerated from it.
        heads: number of attention heads; 0 in a feed-forward block.
        scale: factor of the attention scores.
        p_attention: dropout of the attention's probabilities.
        activation: the feed-forward's activation function, without parameters.
        in_front: whether the LayerNorm is in front of the block.
        layouts: of the block's linears, what is not a tensor of their updates: see `linears`.
        tally: the block's counts.
    """

    settings: Settings
    storing: Storing
    shape: tuple[int, int]
    real: int
    eps: float
    p: float
    seed: int
    heads: int = 0
    scale: float = 1.0
    p_attention: float = 0.0
    activation: nn.Module | None = None
    in_front: bool = False
    layouts: tuple[tuple[tuple[int, float], ...], ...] = ()
    tally: Tally = field(default_factory=Tally)

    def of_attention(self, heads: int, scale: float, dropout: float, in_front: bool) -> "Plan":
        """Returns this plan with what an attention block needs besides."""
        return replace(self, heads=heads, scale=scale, p_attention=dropout, in_front=in_front)

    def of_feed_forward(self, function: nn.Module, in_front: bool) -> "Plan":
        """Returns this plan with what a feed-forward block needs besides."""
        return replace(self, activation=function, in_front=in_front)

    def of_linears(self, layouts: tuple[tuple[tuple[int, float], ...], ...]) -> "Plan":
        """Returns this plan with its linears' layouts."""
        return replace(self, layouts=layouts)

    def budget(self) -> int:
        """Returns how many rows a weight gradient may use: keep_frac of the real tokens, all at keep_frac 1."""
        total = self.shape[0] * self.shape[1]
        if self.settings.keep_frac == 1:
            return total
        return max(1, math.ceil(self.settings.keep_frac * self.real))

    def seed_of(self, site: int, sample: int = 0) -> int:
        """Returns the seed of one source of chance in this call: PROBABILITIES are per sample."""
        return mixed(self.seed, site, sample)
