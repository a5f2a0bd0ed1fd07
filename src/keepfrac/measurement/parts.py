"""Where a model's parameters and its arithmetic are: embeddings, attention, feed-forward, norms, pooler, head.

The bytes are those of the parameters alone, as they are held in memory after loading; a run takes more: see --latency.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from keepfrac.errors import UserError
from keepfrac.measurement.costs import flops
from keepfrac.models.anatomy import Anatomy, Layer, anatomy

PARTS = ("embeddings", "attention", "feed-forward", "norms", "pooler", "head", "other")
LENGTH = 128


def parts(net: Any) -> list[dict[str, Any]]:
    """Returns a row per part that the model has: part, params (tied ones once), parameter_bytes, macs.

    Args:
        net: a Transformers model of a known family, dense, cut or low-rank (of another one: no rows). macs are those
            of one sentence of 128 tokens; the products of queries, keys and values belong to attention.
    """
    try:
        body = anatomy(net)
    except UserError:
        return []
    rows = {part: {"part": part, "params": 0, "parameter_bytes": 0, "macs": 0} for part in PARTS}
    for name, parameter in net.named_parameters():
        row = rows[part_of(name, body)]
        row["params"] += parameter.numel()
        row["parameter_bytes"] += parameter.numel() * parameter.element_size()
    for part, count in _macs(net, body).items():
        rows[part]["macs"] = count
    return [row for row in rows.values() if row["params"] or row["macs"]]


def part_of(name: str, body: Anatomy) -> str:
    """Returns the part to which the parameter of this name belongs."""
    for layer in body.layers:
        if _under(name, (layer.path,)):
            if _under(name, layer.layer_norms):
                return "norms"
            return "attention" if _under(name, _attention(layer)) else "feed-forward"
    if _under(name, (body.embeddings,)):
        return "embeddings"
    if body.pooler and _under(name, (body.pooler,)):
        return "pooler"
    return "head" if _under(name, body.head) else "other"


def _attention(layer: Layer) -> tuple[str, ...]:
    found = (layer.attention, layer.query, layer.key, layer.value, layer.attention_output)
    return tuple(path for path in found if path is not None)


def _under(name: str, paths: Sequence[str]) -> bool:
    return any(name == path or name.startswith(f"{path}.") for path in paths)


def _macs(net: nn.Module, body: Anatomy) -> dict[str, int]:
    """Multiply-accumulates by part; what is in no part's modules is "other"."""
    counter = flops(net, LENGTH)
    by_module = {
        path.partition(".")[2]: sum(by_operator.values()) // 2
        for path, by_operator in counter.get_flop_counts().items()
        if "." in path
    }
    found = dict.fromkeys(PARTS, 0)
    for part, path in _modules(body):
        found[part] += by_module.get(path, 0)
    found["feed-forward"] = sum(by_module.get(layer.path, 0) for layer in body.layers) - found["attention"]
    found["other"] = counter.get_total_flops() // 2 - sum(found.values())
    return found


def _modules(body: Anatomy) -> Iterator[tuple[str, str]]:
    """(part, module path), no module inside another of the same part; feed-forward is the rest of a layer."""
    for layer in body.layers:
        inside = _attention(layer)
        for path in inside:
            if not any(path != other and _under(path, (other,)) for other in inside):
                yield "attention", path
    yield "embeddings", body.embeddings
    for path in (body.pooler,) if body.pooler else ():
        yield "pooler", path
    for path in body.head:
        yield "head", path


def lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the rows as text: counts, and each part's share of the parameters."""
    total = max(1, sum(row["params"] for row in rows))
    head = f"{'part':14s} {'params':>16s} {'share':>7s} {'parameter bytes':>16s} {'MACs (128 tokens)':>18s}"
    return [head] + [
        f"{row['part']:14s} {row['params']:>16,} {row['params'] / total:>7.1%}"
        f" {row['parameter_bytes']:>16,} {row['macs']:>18,}"
        for row in rows
    ]
