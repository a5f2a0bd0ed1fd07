"""State of the current batch that sites share: which tokens are real, and the random draw.

Padding is never selected and never counts: a kept row of padding would buy nothing, and a budget counted over padding
would keep more than it says. The attention mask reaches the sites by a forward pre-hook on the network.

Random draws are counter-based. Each draw seeds a fresh generator from (seed, number of the forward pass, site), so
the selection has its own randomness (dropout's stream is the same with and without it), a resumed run needs but one
integer, and a forward pass repeated by activation checkpointing selects the same again, in whatever order.
Limit: with activation checkpointing, one backward pass must belong to one forward pass of the network.
"""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from keepfrac.tensors.rng import seed32


@dataclass(frozen=True)
class Padding:
    """The real tokens of a padded batch.

    Attributes:
        mask: (batch, length) booleans, True = real.
        counts: real tokens of each sample.
        rows: int64 positions of the real tokens in the flattened (batch * length).
        square: whether the features are tokens too, padded alike (attention weights).
    """

    mask: Tensor
    counts: tuple[int, ...]
    rows: Tensor
    square: bool = False

    @staticmethod
    def of(attention_mask: Tensor | None) -> "Padding | None":
        """Returns the padding of a (batch, length) mask of ones and zeros; None where nothing is padded."""
        if attention_mask is None or attention_mask.dim() != 2:
            return None
        mask = attention_mask.bool()
        counts = tuple(mask.sum(1).tolist())
        if sum(counts) == mask.numel():
            return None
        return Padding(mask, counts, mask.reshape(-1).nonzero().reshape(-1))

    def of_weights(self, heads: int) -> "Padding":
        """Returns the padding of attention weights (batch * heads, length, length)."""
        mask = self.mask.repeat_interleave(heads, 0)
        counts = tuple(count for count in self.counts for _ in range(heads))
        return Padding(mask, counts, mask.reshape(-1).nonzero().reshape(-1), square=True)


@dataclass(frozen=True)
class Draw:
    """The randomness of one site in one forward pass.

    Attributes:
        seed: of the run.
        site: number of the site.
        step: number of the forward pass.
    """

    seed: int
    site: int
    step: int

    def generator(self, device: torch.device) -> torch.Generator:
        """Returns a generator for this draw; each call returns the same sequence again."""
        return torch.Generator(device=device).manual_seed(seed32(self.seed, self.site, self.step))

    def rotation(self, n: int, count: int, device: torch.device) -> Tensor:
        """Returns `count` of `n` units such that ceil(n / count) steps in a row visit every unit.

        The order is a permutation fixed for the site; step t takes its next `count` places, cyclically.
        """
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed32(self.seed, self.site)))
        places = (torch.arange(count) + self.step * count) % n
        return order[places].to(device)


class Context:
    """State shared by all sites of one network: padding of the current batch and number of the forward pass.

    Args:
        seed: of the selection; equal seeds give equal selections, also on several processes.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.step = 0
        self.hooked = False
        self._padding: Padding | None = None
        self._of_weights: dict[int, Padding] = {}

    def attach(self, net: nn.Module) -> Any:
        """Follows the forward passes of `net`; returns the handle of the hook."""
        self.hooked = True
        return net.register_forward_pre_hook(self._begin, with_kwargs=True)

    @torch.compiler.disable
    def _begin(self, net: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not (net.training and torch.is_grad_enabled()):
            return
        self.begin(kwargs.get("attention_mask") if not args else _bound(net, args, kwargs))

    def begin(self, attention_mask: Tensor | None) -> None:
        """Announces the next forward pass."""
        self.step += 1
        self._padding, self._of_weights = Padding.of(attention_mask), {}

    def padding(self, batch: int, length: int) -> Padding | None:
        """Returns the padding of an activation (batch, length, features); None where nothing in it is padded."""
        if self._padding is None or self._padding.mask.shape != (batch, length):
            return None
        return self._padding

    def padding_of_weights(self, batch: int, heads: int, length: int) -> Padding | None:
        """Returns the padding of attention weights (batch * heads, length, length)."""
        padding = self.padding(batch, length)
        if padding is None:
            return None
        if heads not in self._of_weights:
            self._of_weights[heads] = padding.of_weights(heads)
        return self._of_weights[heads]

    def draw(self, site: int) -> Draw:
        """Returns the randomness of `site` for the current forward pass."""
        if not self.hooked:
            self.step += 1
        return Draw(self.seed, site, self.step)


def _bound(net: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The attention mask among positional arguments."""
    return inspect.signature(net.forward).bind_partial(*args, **kwargs).arguments.get("attention_mask")
