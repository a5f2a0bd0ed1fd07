"""One call of a layer: its seed, the padding of its batch, and its blocks' constants.

A seed is a hash of (the run's seed, the rank, the layer, how often the layer has been called). Masks differ between
steps, layers and ranks; the backward pass regenerates them from the seed; a resumed run goes on with the same ones
after the number of calls is restored.
"""

import math
import weakref
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from keepfrac.errors import UserError
from keepfrac.sparse.act8bit.linears import UpdateLayout
from keepfrac.sparse.act8bit.settings import Act8bitSettings, StorageFormat
from keepfrac.tensors.rng import seed63

# what draws by chance inside a block: the output's dropout, the attention's (per sample), the two choices of rows, the
# dropout of what the last linear reads
OUTPUT, PROBABILITIES, ROWS_OUT, ROWS_IN, INNER = range(5)


class SeedCounter:
    """The seeds of one layer's calls.

    Args:
        seed: the run's.
        layer: the layer's number.
    """

    REMEMBERED = 256  # calls whose repetition is recognised by their input; beyond, the latest is repeated

    def __init__(self, seed: int, layer: int) -> None:
        self.seed, self.layer, self.calls = seed, layer, 0
        self._call_of: OrderedDict[int, int] = OrderedDict()

    def seed_for(self, hidden: Tensor) -> int:
        """Returns the seed of this call of the layer on `hidden`; a repetition under checkpointing gets the first's."""
        address = hidden.data_ptr()
        if _is_recomputation():
            call = self._call_of.get(address, self.calls)
        else:
            self.calls += 1
            call = self._call_of[address] = self.calls
            self._call_of.move_to_end(address)
            if len(self._call_of) > self.REMEMBERED:
                self._call_of.popitem(last=False)
        return seed63(self.seed, _rank(), self.layer, call)


def _rank() -> int:
    distributed = torch.distributed
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0


def _is_recomputation() -> bool:
    """Whether a backward pass is running: a forward in it is activation checkpointing, which repeats an earlier one."""
    return torch._C._current_graph_task_id() != -1


class KeyPadding(NamedTuple):
    """Which tokens of a batch are real.

    Args:
        bias: (batch, length) floats to add to the scores of each key, 0 where it is real; None where all are. Of
            `read_mask`, the mask of queries and keys.
        real: the number of real tokens.
    """

    bias: Tensor | None
    real: int


def read_mask(mask: Tensor | None, x: Tensor, window: int | None, causal: bool) -> KeyPadding:
    """Reads the mask that reaches a layer whose queries see different keys.

    Args:
        mask: None (no padding, and a window that is not reached); (batch or 1, 1, queries, keys); or, of attention
            functions that see to the rest themselves, (batch, length) with 1 = real.
        x: (batch, length, width), the layer's input.
        window: how many keys a query sees on either side, its own among them; None: all.
        causal: whether it sees no later key.

    Raises:
        UserError: a mask of another shape.
    """
    batch, length = x.shape[:2]
    if mask is None:
        return KeyPadding(None, batch * length)
    if mask.dim() == 2 and mask.shape == (batch, length):
        place = torch.arange(length, device=mask.device)
        ahead = place - place[:, None]
        seen = (ahead <= 0) if causal else torch.ones_like(ahead, dtype=torch.bool)
        seen = seen if window is None else seen & (ahead.abs() < window)
        return KeyPadding(seen & mask.bool()[:, None, None], int((mask != 0).sum()))
    if mask.dim() != 4 or mask.shape[1] != 1 or mask.shape[2:] != (length, length):
        raise UserError(f"method late needs an attention mask (batch, 1, length, length); got {tuple(mask.shape)}")
    # a token of padding does not even see itself
    itself = mask[:, 0].diagonal(dim1=1, dim2=2)
    real = itself if mask.dtype == torch.bool else itself == 0
    return KeyPadding(mask, int(real.expand(batch, length).sum()))


def _per_key(mask: Tensor) -> Tensor:
    """(batch, length) of a 4-D mask (batch, 1, queries, length) that hides the same keys from every query.

    Raises:
        UserError: it does not.
    """
    if mask.dim() != 4 or mask.shape[1] != 1:
        raise UserError(f"method late needs an attention mask of shape (batch, length); got {tuple(mask.shape)}")
    row = mask[:, 0, 0]
    if not torch.equal(mask, row[:, None, None].expand_as(mask)):
        raise UserError("method late needs the same attention mask for every query: causal masks do not fit")
    return row


def read_padding(mask: Tensor | None, x: Tensor) -> KeyPadding:
    """Reads the mask that reaches a layer.

    Args:
        mask: None (all real); (batch, length) with 1 = real; or (batch, 1, queries, length), booleans with True = real
            or floats to be added to the scores.
        x: (batch, length, width), the layer's input.

    Raises:
        UserError: a mask that differs between queries, or of another shape.
    """
    batch, length = x.shape[:2]
    if mask is None:
        return KeyPadding(None, batch * length)
    row = mask if mask.dim() == 2 else _per_key(mask)
    row = row.expand(batch, length)
    if mask.dim() == 2 or not row.dtype.is_floating_point:
        row = torch.zeros(batch, length, device=x.device).masked_fill_(row == 0, -torch.inf)
    real = int((row == 0).sum())
    return KeyPadding(None if real == batch * length else row.float().contiguous(), real)


class PaddingReader:
    """`read_padding` or `read_mask`, once for all layers that are given the same mask."""

    def __init__(self) -> None:
        self._last: tuple | None = None

    def __call__(
        self, mask: Tensor | None, x: Tensor, *, masked: bool = False, window: int | None = None, causal: bool = False
    ) -> KeyPadding:
        if mask is None:
            return KeyPadding(None, x.shape[0] * x.shape[1])
        given = (mask._version, masked, window, causal)
        if self._last is None or self._last[0]() is not mask or self._last[1] != given:
            read = read_mask(mask, x, window, causal) if masked else read_padding(mask, x)
            self._last = (weakref.ref(mask), given, read)
        return self._last[2]

    def __deepcopy__(self, memo: dict) -> "PaddingReader":
        return PaddingReader()

    def __reduce__(self) -> tuple:
        return (PaddingReader, ())


@dataclass
class RowStats:
    """Counts of one block.

    Args:
        real_rows: real tokens of all backward passes so far.
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

    def row(self, site: str, kernels: str, storing: Any, asked: float) -> dict[str, Any]:
        """Returns the row of a report; what is kept depends on shapes alone, so it is what is predicted."""
        return {
            "site": site,
            "kind": "late",
            "kernels": kernels,
            "storing": storing,
            "asked": asked,
            "achieved": self.share,
            "fallback": None,
            "bytes_dense": self.dense_bytes,
            "bytes_kept": self.saved_bytes,
            "bytes_predicted": self.saved_bytes,
        }

    @property
    def share(self) -> float | None:
        """The share of the real tokens that formed weight gradients; None before the first backward pass."""
        return self.used_rows / self.real_rows if self.real_rows else None


class NormConfig(NamedTuple):
    """Around a block.

    Args:
        eps: of its norm.
        p: dropout of its output.
        pre_norm: whether the norm is in front of it.
        rms: whether it is an RMSNorm; then it is in front.
        output_eps: of the RMSNorm of its output; None: there is none.
        bare: whether there is nothing in front, where a norm would stand.
    """

    eps: float
    p: float
    pre_norm: bool
    rms: bool = False
    output_eps: float | None = None
    bare: bool = False

    @property
    def num_kept(self) -> int:
        """How many tensors the norms store: normalised rows, their scales and 1 / deviation, of each."""
        return 3 * ((not self.bare) + (self.output_eps is not None))


class AttentionConfig(NamedTuple):
    """Of an attention block.

    Args:
        heads: of the queries.
        scale: factor of the scores.
        p: dropout of the probabilities.
        masked: whether it is computed by `masked_attention`, which the following are for.
        causal: whether a query sees no later key, where the model hands out no mask.
        kv_heads: of keys and values.
        head_dim: width of a head.
        head_eps: of the RMSNorms of query and key.
        rotate: (query, key, cos, sin) -> query and key with their positions.
    """

    heads: int
    scale: float
    p: float
    masked: bool = False
    causal: bool = False
    kv_heads: int = 0
    head_dim: int = 0
    head_eps: float = 0.0
    rotate: Any = None


@dataclass(frozen=True, kw_only=True)
class Call:
    """The constants of one call of one block: what a Function keeps on its context except saved tensors.

    Args:
        settings: what the user asked for.
        storage: how this layer stores.
        shape: (batch, length).
        real: how many of the batch * length tokens are real.
        norm: around the block.
        seed: of this call; the masks and the choice of rows are regenerated from it.
        attention: None in a feed-forward block.
        activation: the feed-forward's activation function, without parameters.
        gated: whether that is of a gate: the first half of what it is given, which multiplies the second.
        inner_p: dropout of what the feed-forward's last linear reads.
        layouts: of the block's linears, what is not a tensor of their updates: see `linears`.
        stats: the block's counts.
    """

    settings: Act8bitSettings
    storage: StorageFormat
    shape: tuple[int, int]
    real: int
    norm: NormConfig
    seed: int
    attention: AttentionConfig | None = None
    activation: nn.Module | None = None
    gated: bool = False
    inner_p: float = 0.0
    layouts: tuple[UpdateLayout, ...] = ()
    stats: RowStats

    def budget(self) -> int:
        """Returns how many rows a weight gradient may use: keep_frac of the real tokens, all at keep_frac 1."""
        total = self.shape[0] * self.shape[1]
        if self.settings.keep_frac == 1:
            return total
        return max(1, math.ceil(self.settings.keep_frac * self.real))

    def seed_of(self, site: int, sample: int = 0) -> int:
        """Returns the seed of one source of chance in this call: PROBABILITIES are per sample."""
        return seed63(self.seed, site, sample)

    def count_saved(
        self, x: Tensor, kept: tuple[Tensor, ...], compute: torch.dtype, values: int | None, reads: bool = True
    ) -> None:
        """Notes what this call stores, and what PyTorch stores for the same operations.

        Dense, per token: the block's input (where `reads`: its first linears learn) and `values` numbers in the compute
        dtype (query, key, value and context, or both sides of the activation function), the LayerNorm's input in x's
        dtype, one byte per number of the output's dropout mask, and the logsumexp of a fused attention: 16.5 times
        batch * length * width floats for a BERT layer. `values` None: a LayerNorm alone.
        """
        rows, width = x.numel() // x.shape[-1], x.shape[-1]
        per_row = 0 if self.norm.bare else width * x.element_size()
        if values is not None:
            mask = width if self.norm.p > 0 else 0
            per_row += (width * reads + values) * compute.itemsize + mask
            # of an RMSNorm, written out by the models: the normalised rows too; of one of the output, its input as well
            of_rms = 0 if not self.norm.rms else 1 if self.norm.output_eps is None else 3
            per_row += of_rms * width * x.element_size()
            per_row += 4 * self.attention.heads if self.attention else 0
        self.stats.saved_bytes = sum(tensor.nbytes for tensor in kept)
        self.stats.dense_bytes = rows * per_row


def refuse_double_backward() -> None:
    """Raises in a double backward pass: gradients from rounded and sampled values have no meaningful derivative.

    Raises:
        RuntimeError: the backward pass was asked to be differentiable.
    """
    if torch.is_grad_enabled():
        raise RuntimeError(
            "method late has no second derivative: call backward or autograd.grad without create_graph=True"
        )
