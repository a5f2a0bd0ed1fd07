"""A measured table of sub-layer times, and its piecewise-linear reading."""

from __future__ import annotations

import functools
import hashlib
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, dataclass
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from keepfrac.errors import UserError
from keepfrac.prune.structure import ModelShape, Number
from keepfrac.storage.files import write_atomically
from keepfrac.storage.provenance import device_name
from keepfrac.tensors.clock import interleaved_seconds

Points = tuple[tuple[int, float], ...]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class LatencyTable:
    """(count, milliseconds) for an attention sub-layer by heads, and a feed-forward sub-layer by neurons.

    Made never to fall: where a wider sub-layer was measured as faster, the table holds the narrower one's time, so
    that removing a unit never looks like a loss.
    """

    heads: Points
    neurons: Points
    conditions: str

    def __post_init__(self) -> None:
        for name in ("heads", "neurons"):
            points = sorted((int(count), float(ms)) for count, ms in getattr(self, name))
            if len(points) < 2 or points[0][0] != 0 or points[0][1] < 0:
                raise UserError(f"the latency table's {name} need at least two points, the first at 0, no time below 0")
            rising: list[tuple[int, float]] = []
            for count, ms in points:
                rising.append((count, max(ms, rising[-1][1] if rising else ms)))
            object.__setattr__(self, name, tuple(rising))

    def attention(self, heads: Number) -> Number:
        """Milliseconds of an attention sub-layer; differentiable where `heads` is a tensor."""
        return interpolate(self.heads, heads)

    def ffn(self, neurons: Number) -> Number:
        """Milliseconds of a feed-forward sub-layer; differentiable where `neurons` is a tensor."""
        return interpolate(self.neurons, neurons)

    def save(self, path: Path) -> None:
        write_atomically(path, json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> LatencyTable:
        """Raises UserError where the file is not a latency table."""
        try:
            found = json.loads(path.read_text())
            heads, neurons = (tuple((int(c), float(ms)) for c, ms in found[n]) for n in ("heads", "neurons"))
            return cls(heads, neurons, str(found["conditions"]))
        except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise UserError(f"{path} is not a latency table ({error!r}); delete it to measure again") from error


def interpolate(points: Points, count: Number) -> Number:
    """Interpolates linearly between points, constant outside; a tensor stays on its device and keeps its gradient."""
    if isinstance(count, Tensor):
        return _interpolate_tensor(points, count)
    x = min(max(float(count), points[0][0]), points[-1][0])
    x0, y0, x1, y1 = next((*a, *b) for a, b in pairwise(points) if x <= b[0])
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)


def _interpolate_tensor(points: Points, count: Tensor) -> Tensor:
    xs, ys = (torch.tensor(c, dtype=torch.float32, device=count.device) for c in zip(*points, strict=True))
    x = count.float().clamp(xs[0], xs[-1])
    right = torch.searchsorted(xs, x.detach()).clamp(1, len(points) - 1)
    slope = (ys[right] - ys[right - 1]) / (xs[right] - xs[right - 1])
    return ys[right - 1] + slope * (x - xs[right - 1])


def measure_table(
    shape: ModelShape,
    batch: int,
    length: int,
    device: torch.device,
    dtype: torch.dtype,
    repeats: int,
    neuron_points: int = 9,
) -> LatencyTable:
    """Times one sub-layer of every head count and of evenly spaced widths, interleaved, without gradients.

    Args:
        shape: the dense encoder.
        batch: rows of one forward.
        length: tokens of one row.
        device: where.
        dtype: in what precision.
        repeats: rounds over all variants; the median of each is kept. The first round warms up and is dropped.
        neuron_points: widths measured between 0 and the dense one, both included.

    Returns:
        The table; its `conditions` say batch, length, device, dtype and threads.
    """
    widths = sorted({round(i * shape.num_neurons / (neuron_points - 1)) for i in range(neuron_points)})
    variants: dict[tuple[str, int], Callable[[Tensor], Tensor]] = {}
    # a run must draw the same numbers whether its table was measured or lay in the cache
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        x = torch.randn(batch, length, shape.hidden, device=device, dtype=dtype)
        for heads in range(shape.num_heads + 1):
            variants["heads", heads] = _Attention(shape, heads).to(device, dtype)
        for width in widths:
            variants["neurons", width] = _FeedForward(shape, width).to(device, dtype)
    calls = {key: functools.partial(variant, x) for key, variant in variants.items()}
    with torch.no_grad():
        seconds = interleaved_seconds(calls, repeats, 1, device)
    times = {key: 1000 * statistics.median(found) for key, found in seconds.items()}
    points = {
        kind: tuple((count, ms) for (k, count), ms in times.items() if k == kind) for kind in ("heads", "neurons")
    }
    where = f"batch {batch}, {length} tokens, {device.type}, {str(dtype).removeprefix('torch.')}"
    return LatencyTable(points["heads"], points["neurons"], f"{where}, {torch.get_num_threads()} threads")


def cached_table(
    folder: Path, shape: ModelShape, batch: int, length: int, device: torch.device, dtype: torch.dtype, repeats: int
) -> LatencyTable:
    """Returns the table of `measure_table`, measured once for each shape, setting, device and number of threads.

    Args:
        folder: of the cache.
        shape: see `measure_table`, as all that follow.
        batch: rows of one forward.
        length: tokens of one row.
        device: where.
        dtype: in what precision.
        repeats: rounds.
    """
    if shape.causal:
        raise UserError("method.cost=latency is measured on layers of encoders: use params or macs")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device_name("cpu")
    key = (astuple(shape), batch, length, name, str(dtype), repeats, torch.get_num_threads(), torch.__version__)
    path = folder / f"{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}.json"
    if path.exists():
        return LatencyTable.load(path)
    table = measure_table(shape, batch=batch, length=length, device=device, dtype=dtype, repeats=repeats)
    table.save(path)
    return table


class _Attention(nn.Module):
    """An attention sub-layer with its residual and norm, of the wanted number of heads (0: the norm alone)."""

    def __init__(self, shape: ModelShape, heads: int) -> None:
        super().__init__()
        self.heads, self.head_dim, width = heads, shape.head_dim, heads * shape.head_dim
        self.norm = nn.LayerNorm(shape.hidden)
        if heads:
            self.inputs = nn.ModuleList(nn.Linear(shape.hidden, width) for _ in range(3))
            self.output = nn.Linear(width, shape.hidden)

    def forward(self, x: Tensor) -> Tensor:
        if not self.heads:
            return self.norm(x)
        q, k, v = (f(x).unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2) for f in self.inputs)
        context = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.norm(x + self.output(context))


class _FeedForward(nn.Module):
    """A feed-forward sub-layer with its residual and norm, of the wanted width (0: the norm alone)."""

    def __init__(self, shape: ModelShape, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(shape.hidden)
        layers: Sequence[nn.Module] = (
            (nn.Linear(shape.hidden, width), nn.GELU(), nn.Linear(width, shape.hidden)) if width else ()
        )
        self.inner = nn.Sequential(*layers) if layers else None

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x if self.inner is None else x + self.inner(x))
