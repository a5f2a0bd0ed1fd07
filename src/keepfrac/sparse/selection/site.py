"""A site: a tensor of the network of which a selection is saved, and its report.

Query, key and value read the same tensor, so they are one site: the first of them to run makes the selection, the
others take it over (three copies would cost 3 * keep_frac, more than the one dense tensor they replace).
"""

import weakref
from typing import Any

import torch
from torch import Tensor

from keepfrac.sparse.context import Context, Padding
from keepfrac.sparse.selection.keeping import keep
from keepfrac.sparse.selection.packing import Kept, expected_bytes, smaller
from keepfrac.sparse.selection.selectors import Selector


class Site:
    """A tensor that is saved for the backward pass.

    Args:
        name: path of the module, or of the first of the modules that share it.
        kind: linear | attention | softmax | layer_norm | activation.
        selector: what to keep.
        context: of the network.
        number: distinguishes the site's random draws from those of others.
        num_readers: how many operations read the one tensor (3 for query, key and value).
        extra_bits: further bits per number that it costs elsewhere to save less here (1 for a packed ReLU in front).
        heads: of attention weights (batch * heads, length, length); 0 for other activations.
    """

    def __init__(
        self,
        name: str,
        kind: str,
        selector: Selector,
        context: Context,
        number: int,
        num_readers: int = 1,
        extra_bits: int = 0,
        heads: int = 0,
    ) -> None:
        self.name = name
        self.kind = kind
        self.selector = selector
        self.context = context
        self.number = number
        self.num_readers = num_readers
        self.extra_bits = extra_bits
        self.heads = heads
        self.fallback: str | None = None
        self.saved_elsewhere = False
        self.kept = 0
        self.of = 0
        self.bytes_dense = 0
        self.bytes_kept = 0
        self.bytes_predicted = 0
        self.selected_columns: Tensor | None = None
        self.factors: Tensor | None = None  # (tokens,) of this batch, by which token rows' scores are multiplied
        self._memo: tuple[Any, int, Kept | None] | None = None

    def select(self, source: Tensor, x: Tensor | None = None) -> Kept | None:
        """Returns what is kept of an activation, None where it has to be saved whole.

        Args:
            source: the tensor (batch, length, features) that the operations of this site read.
            x: its cast to the dtype of the computation, where that differs.
        """
        if self._memo is not None and self._memo[0]() is source and self._memo[1] == source._version:
            return self._memo[2]
        kept = self._select((source if x is None else x).detach(), cast=x is not None and x is not source)
        self._memo = (weakref.ref(source, self._forget), source._version, kept)
        return kept

    def mark_saved_elsewhere(self, by: str | None) -> None:
        """Notes that another operation saves this tensor anyway, so that it stays whole; None takes it back."""
        self.fallback, self.saved_elsewhere = by, by is not None

    def smaller(self, shape: torch.Size | tuple[int, ...], item: int) -> bool:
        """Returns whether keeping a part of an activation of this shape and item size saves bytes."""
        batch, length, features = shape
        extra = -(-batch * length * features // 8) * self.extra_bits
        return smaller(
            (batch, length, features), item, self.selector, padding=self._padding(batch, length), extra=extra
        )

    def _padding(self, batch: int, length: int) -> Padding | None:
        if self.heads:
            return self.context.padding_of_weights(batch // self.heads, self.heads, length)
        return self.context.padding(batch, length)

    def _select(self, x: Tensor, cast: bool) -> Kept | None:
        # Autocast makes a cast per operation, and a dense layer saves each of them.
        self.bytes_dense = x.numel() * x.element_size() * (self.num_readers if cast else 1)
        padding, shape = self._padding(x.shape[0], x.shape[1]), (x.shape[0], x.shape[1], x.shape[2])
        self.bytes_predicted = expected_bytes(shape, x.element_size(), self.selector, padding=padding)
        if not self.smaller(x.shape, x.element_size()):
            self.stay_whole(x.numel(), self.bytes_dense)
            return None
        with torch.no_grad():
            kept = keep(x, self.selector, padding, draw=self.context.draw(self.number), factors=self.factors)
            self._note(kept)
        return kept

    def stay_whole(self, numbers: int, size: int) -> None:
        """Notes that an activation of so many numbers and bytes is saved whole, as a part would not be smaller."""
        self.fallback = "the part would not be smaller than the whole"
        self.kept = self.of = numbers
        self.bytes_dense = self.bytes_kept = size

    def _note(self, kept: Kept) -> None:
        self.fallback = None
        self.kept, self.of, self.bytes_kept = kept.kept, kept.of, kept.nbytes
        if kept.layout.kind == "columns":
            columns = kept.tensors[1].long()
            if self.selected_columns is None:
                self.selected_columns = torch.zeros(kept.layout.shape[2], dtype=torch.bool)
            self.selected_columns = self.selected_columns.to(columns.device)
            self.selected_columns.index_fill_(0, columns, True)

    def _forget(self, _: object) -> None:
        self._memo = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_memo": None}

    def report(self) -> dict[str, Any]:
        """Returns the last forward pass in figures: asked, achieved, bytes, and why it is dense where it is.

        bytes_dense is what a dense layer saves here, bytes_kept what was saved, bytes_predicted what the shapes alone
        say (an upper bound where zeros need not be stored). What two sites share, such as the output of a ReLU and the
        input of the linear behind it, counts as dense bytes of one of them: the linear.
        """
        return {
            "site": self.name,
            "kind": self.kind,
            "asked": self.selector.keep_frac,
            "achieved": self.kept / self.of if self.of else None,
            "fallback": self.fallback,
            "pinned": self.saved_elsewhere,
            "bytes_dense": self.bytes_dense,
            "bytes_kept": self.bytes_kept,
            "bytes_predicted": self.bytes_predicted,
        }
