"""Typed names of a model's parts: what works on a model asks here for *the query of layer 3* and gets a module path.

Sparse backward, masks, cuts and adapters all do. Paths are relative to the network that was given, so they fit both a
bare encoder and one with a head. How each family spells them stands in `models.families`.
"""

from dataclasses import dataclass

from torch import nn

from keepfrac.errors import UserError
from keepfrac.models.families import FAMILIES, PRUNED, Family
from keepfrac.models.own_attention import can_ask
from keepfrac.tensors.layouts import LinearLayout

ATTENTION = ("attention", "query", "key", "value", "attention_output", "probability_dropout", "attention_dropout")
FEED_FORWARD = ("ffn_gate", "ffn_in", "ffn_out", "activation", "ffn_dropout")
LINEARS = ("query", "key", "value", "attention_output", "ffn_gate", "ffn_in", "ffn_out")
"""The roles of linears, in the order of the forward pass."""


@dataclass(frozen=True)
class Layer:
    """Module paths of one transformer layer, and the shape of its attention.

    The paths are those of `families.Family`. Of a sub-layer that was removed from a cut model, and of a part that the
    family does not have, they are None; the layer norm of a removed sub-layer stays. A linear may be held as two
    factors, the linears `p` and `q` inside it.

    Attributes:
        path: the layer itself.
        num_heads: of this layer (a cut model may differ from layer to layer).
        head_dim: width of one head.
        num_kv_heads: heads of key and value, where several query heads share one; None: as many as heads.
        transposed: whether weights are held as (inputs, outputs).
        positions: further linears, whose outputs are those of heads as well.
    """

    path: str
    attention: str | None
    query: str | None
    key: str | None
    value: str | None
    attention_output: str | None
    ffn_in: str | None
    ffn_out: str | None
    ffn_gate: str | None
    activation: str | None
    layer_norms: tuple[str, ...]
    probability_dropout: str | None
    attention_dropout: str | None
    ffn_dropout: str | None
    num_heads: int
    head_dim: int
    num_kv_heads: int | None
    transposed: bool
    positions: tuple[str, ...] = ()

    @property
    def layout(self) -> LinearLayout:
        """The linears that are there by role, and how they hold their matrices."""
        paths = {role: path for role in LINEARS if (path := getattr(self, role)) is not None}
        return LinearLayout(paths, self.transposed)

    @property
    def linears(self) -> tuple[str, ...]:
        """Paths of the linears that are there, each once, in the order of the forward pass."""
        return tuple(dict.fromkeys(self.layout.paths.values()))

    @property
    def unit_width(self) -> int:
        """Columns of `attention_output` of one unit: a head, or the query heads that share a key-value head."""
        return self.head_dim * (self.num_heads // self.num_kv_heads if self.num_kv_heads else 1)


@dataclass(frozen=True)
class Anatomy:
    """Paths of a model's parts.

    Attributes:
        model_type: of the configuration.
        family: its row of the table.
        base: path of the encoder (or decoder); "" where the network is the encoder itself.
        embeddings: path of the module whose output the first layer reads.
        layers: the transformer layers, first to last.
        pooler: path of the pooler, None where there is none.
        head: paths of the modules outside the encoder (classifier, masked-LM head ...), empty for a bare encoder.
        repeats: how often each layer is run, one time after the other, in a forward pass.
    """

    model_type: str
    family: Family
    base: str
    embeddings: str
    layers: tuple[Layer, ...]
    pooler: str | None
    head: tuple[str, ...]
    repeats: int = 1

    @property
    def causal(self) -> bool:
        """Whether a token sees only what stands before it: a decoder."""
        return self.family.causal

    @property
    def runs(self) -> tuple[Layer, ...]:
        """The layers in the order of the forward pass, each as often as it is run."""
        return tuple(layer for layer in self.layers for _ in range(self.repeats))


def anatomy(net: nn.Module) -> Anatomy:
    """Returns the typed names of the parts of `net`, a Transformers model with or without a head.

    Raises:
        UserError: the architecture is not among the known ones.
    """
    family, base = family_of(net), base_path(net)
    encoder = net.get_submodule(base)
    prefix = f"{base}." if base else ""
    count = len(encoder.get_submodule(family.layers))  # type: ignore[arg-type]
    return Anatomy(
        model_type=str(net.config.model_type),  # type: ignore[union-attr]
        family=family,
        base=base,
        embeddings=f"{prefix}{family.embeddings}",
        layers=tuple(_layer(net, f"{prefix}{family.layers}.{i}", family) for i in range(count)),
        pooler=f"{prefix}pooler" if getattr(encoder, "pooler", None) is not None else None,
        head=head_of(net),
        repeats=_repeats(net, family, count),
    )


def family_of(net: nn.Module) -> Family:
    """Returns the row of the table for a dense or a cut model.

    Raises:
        UserError: the architecture is not among the known ones.
    """
    model_type = getattr(getattr(net, "config", None), "model_type", None) or type(net).__name__
    if (family := FAMILIES.get(model_type.removeprefix(PRUNED))) is None:
        raise UserError(
            f"the parts of a {model_type!r} are not known, as models/families.py has no row for it: it can be"
            " fine-tuned whole (method=nosp, checkpoint or late), have low-rank updates of linears that patterns name"
            " (method=lora method.targets=['.*query']), learn from a teacher's logits (distill=logits) and lose tokens"
            f" (method=vocab); all else is for {', '.join(sorted(FAMILIES))}"
        )
    return family


def check_attention_interface(net: nn.Module, wanted: str, instead: str) -> None:
    """Refuses features that record or replace the attention function where a model does not ask Transformers for it.

    Args:
        net: the model.
        wanted: what needs it.
        instead: the way out.

    Raises:
        UserError: the model's attention does not go through Transformers' AttentionInterface.
    """
    parts = anatomy(net)
    asks = parts.family.attention_interface and getattr(net, "_supports_attention_backend", False)
    paths = [layer.attention for layer in parts.layers if layer.attention is not None]
    if not asks and not all(can_ask(net.get_submodule(path)) for path in paths):
        raise UserError(
            f"{wanted}: the attention of a {parts.model_type} model does not go through Transformers'"
            f" AttentionInterface, so nothing of it would be seen; {instead}"
        )


def base_path(net: nn.Module) -> str:
    """Returns the path of the encoder inside `net`: its `base_model_prefix`, or "" where `net` is the encoder."""
    prefix = getattr(net, "base_model_prefix", "")
    return prefix if prefix and hasattr(net, prefix) else ""


def head_of(net: nn.Module) -> tuple[str, ...]:
    """Returns the paths of the modules outside the encoder, of any model; none of a bare encoder."""
    base = base_path(net)
    return tuple(name for name, _ in net.named_children() if name != base) if base else ()


def _repeats(net: nn.Module, family: Family, layers: int) -> int:
    runs = getattr(net.config, family.runs) if family.runs else layers
    if runs % layers or (family.runs and getattr(net.config, "inner_group_num", 1) != 1):
        raise UserError(f"the {layers} layers of this model are not run equally often, one after the other: not known")
    return runs // layers


def _layer(net: nn.Module, path: str, family: Family) -> Layer:
    layer = net.get_submodule(path)
    names = {role: getattr(family, role) for role in ATTENTION + FEED_FORWARD}
    there = {role: name for role, name in names.items() if name is not None and _has(layer, name)}
    for removed, role in ((ATTENTION, "query"), (FEED_FORWARD, "ffn_out")):
        if role not in there:
            there = {other: name for other, name in there.items() if other not in removed}
    attention = layer.get_submodule(family.attention)
    head_dim = getattr(attention, family.head_dim)
    packed = (family.query, family.key, family.value).count(family.query)
    counted = {role: _outputs(layer, there.get(role)) // (head_dim * packed) for role in ("query", "key")}
    named = family.num_heads is not None
    return Layer(
        path=path,
        **{role: f"{path}.{there[role]}" if role in there else None for role in names},
        layer_norms=tuple(f"{path}.{name}" for name in family.layer_norms),
        num_heads=getattr(attention, str(family.num_heads)) if named else counted["query"],
        head_dim=head_dim,
        num_kv_heads=None if named else counted["key"],
        transposed=family.layout == "conv1d",
        positions=tuple(f"{path}.{name}" for name in family.positions if _has(layer, name)),
    )


def _outputs(layer: nn.Module, path: str | None) -> int:
    return 0 if path is None else int(getattr(layer.get_submodule(path), "out_features", 0))


def _has(module: nn.Module, path: str) -> bool:
    try:
        return not getattr(module.get_submodule(path), "is_removed", False)
    except AttributeError:
        return False
