"""Gradient norms of each token from the last pass over its sentence, for a choice in the forward pass.

A linear's weight gradient is a sum over tokens, dW = sum_t g_t x_t^T, and the best chance of a token to be kept is
proportional to ||g_t|| ||x_t||. In the forward pass ||g_t|| is unknown, but each sentence is read once per epoch: the
norms of the previous epoch replace it (WTA-CRS, Liu et al. 2023, section 3.3, which keeps them by row number). Here the
key is the sentence's token ids, so that no data loader has to number its rows. A new sentence gets the mean of the
known ones; where none is known, the norm of the input decides alone.
"""

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from keepfrac.errors import UserError
from keepfrac.settings import count, flag, settings
from keepfrac.sparse.convert import sparsify
from keepfrac.sparse.layers.linear import SparseLinear
from keepfrac.sparse.protocol import BackwardSaver
from keepfrac.sparse.selection.selectors import Selector
from keepfrac.sparse.sparsified import Sparsified


class GradientNorms:
    """The table of norms of a network's sites, filled by its backward passes and read by its forward passes.

    Args:
        net: the network, with linears that select token rows; its inputs must include `input_ids`.
        sparsified: its handle.
    """

    def __init__(self, net: nn.Module, sparsified: Sparsified) -> None:
        self.sites = {site.number: site for site in sparsified.sites if site.kind == "linear"}
        self.row_of_site = {number: row for row, number in enumerate(sorted(self.sites))}
        self.table: dict[bytes, Tensor] = {}  # sentence -> (sites, tokens) in bfloat16
        self._open: list[tuple[list[bytes], Tensor]] = []
        self._handles = [net.register_forward_pre_hook(self._begin, with_kwargs=True)]
        for module in net.modules():
            if isinstance(module, SparseLinear):
                self._handles.append(module.register_forward_hook(self._hook_gradient))

    def remove(self) -> None:
        """Takes the hooks off."""
        while self._handles:
            self._handles.pop().remove()

    def _begin(self, net: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        if not (net.training and torch.is_grad_enabled()):
            return
        ids, mask = named.get("input_ids"), named.get("attention_mask")
        if ids is None:
            raise UserError("gradient norms are kept by sentence: the model must be given input_ids by name")
        self.fill_table()
        sentences = _sentences(ids, mask)
        factors = self._factors(sentences, ids.shape).to(ids.device)
        for number, site in self.sites.items():
            site.factors = None if self.table == {} else factors[self.row_of_site[number]].reshape(-1)
        self._open.append((sentences, torch.zeros(len(self.row_of_site), *ids.shape, device=ids.device)))

    def _factors(self, sentences: list[bytes], shape: torch.Size) -> Tensor:
        """Returns the norms of a batch as they were, (sites, batch, length), float32."""
        factors = torch.full((len(self.row_of_site), *shape), torch.nan)
        for row, sentence in enumerate(sentences):
            known = self.table.get(sentence)
            if known is not None:
                factors[:, row, : known.shape[1]] = known.float()
        mean = factors.flatten(1).nanmean(1).nan_to_num(1.0).clamp_min(1e-30)
        return torch.where(factors.isnan(), mean[:, None, None], factors)

    def _hook_gradient(self, linear: Any, args: tuple[Any, ...], y: Tensor) -> None:
        if linear.training and y.requires_grad and y.dim() == 3 and self._open:
            y.register_hook(self._adds_squares_to(self._open[-1][1][self.row_of_site[linear.site.number]]))

    @staticmethod
    def _adds_squares_to(squares: Tensor) -> Callable[[Tensor], None]:
        def add(grad: Tensor) -> None:
            squares.add_(grad.detach().float().square().sum(-1))

        return add

    def fill_table(self) -> None:
        """Enters the norms of the backward passes that are over into the table."""
        for sentences, squares in self._open:
            if not bool(squares.any()):
                continue  # no backward pass followed
            norms = squares.sqrt().bfloat16().cpu()
            for row, sentence in enumerate(sentences):
                self.table[sentence] = norms[:, row, : _length(sentence)].clone()
        self._open = []

    def state(self) -> dict[str, Any]:
        """Returns the table for a checkpoint, as tensors."""
        self.fill_table()
        keys = [torch.frombuffer(bytearray(key), dtype=torch.uint8) for key in self.table]
        return {
            "keys": torch.stack(keys) if keys else torch.zeros(0, dtype=torch.uint8),
            "norms": torch.cat(list(self.table.values()), 1) if keys else torch.zeros(0, dtype=torch.bfloat16),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on from a table of `state`."""
        self._open, self.table = [], {}
        keys = [bytes(key.tolist()) for key in state["keys"]]
        if keys:
            parts = state["norms"].split([_length(key) for key in keys], 1)
            self.table = {key: part.clone() for key, part in zip(keys, parts, strict=True)}


def _sentences(ids: Tensor, mask: Tensor | None) -> list[bytes]:
    """Returns for each row its number of tokens (4 bytes) and a hash of them (12 bytes)."""
    real = torch.ones_like(ids) if mask is None else mask
    found = []
    for row, keep in zip(ids.cpu(), real.cpu(), strict=True):
        length = int(keep.nonzero().max()) + 1 if keep.any() else 0
        tokens = row[:length].contiguous().numpy().tobytes()
        found.append(length.to_bytes(4, "little") + hashlib.blake2b(tokens, digest_size=12).digest())
    return found


def _length(sentence: bytes) -> int:
    return int.from_bytes(sentence[:4], "little")


class WinnerTakeAllRows(BackwardSaver):
    """`wta`: tokens' rows kept by chance, in proportion to their norm, and scaled so that the gradient is unbiased."""

    @settings
    class Settings(BackwardSaver.Settings):
        gradient_norms: bool = flag(
            "whether the norms of the gradients of the epoch before are used: 2 bytes per token of the training set and"
            " site, in memory and in checkpoints; each process keeps its own"
        )
        selection_seed: int = count("seed of the random choices", least=0)

    def convert(self, net: nn.Module) -> Sparsified:
        own = self.settings
        selector = Selector(keep_frac=own.keep_frac, unit="token", rule="sampled", norm="l2", scale="inverse")
        handle = sparsify(net, ("linear",), selector, seed=own.selection_seed)
        if own.gradient_norms:
            handle.norms = GradientNorms(net, handle)
            handle.undo.append(handle.norms.remove)
        return handle
