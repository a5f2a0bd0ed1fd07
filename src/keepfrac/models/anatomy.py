"""Typed names of a model's parts: the one place that knows how a family spells its layers.

Everything that works on a model (sparse backward, masks, cuts, adapters) asks here for *the query of layer 3* and gets
a module path; no other file holds a string like `attention.self.query`. Paths are relative to the network that was
given, so they fit both a bare encoder and one with a head.

A family is known by `config.model_type`. To add one, write its `_Names` below.
"""

from dataclasses import dataclass, replace

from torch import nn

from keepfrac.errors import UserError


@dataclass(frozen=True)
class Layer:
    """Module paths of one transformer layer, and the shape of its attention.

    Attributes:
        path: the layer itself.
        attention: the module that calls the attention function (it owns query, key and value).
        query, key, value, attention_output, ffn_in, ffn_out: the six linears; their input widths are the hidden size,
            but for `attention_output` (num_heads * head_dim) and `ffn_out` (intermediate size). Each may be held as
            two factors, the linears `p` and `q` inside it. GPT-2 holds query, key and value as one linear, whose path
            then stands three times (see `fused`).
        activation: the activation between `ffn_in` and `ffn_out`; with a gate, that of the gate.
        layer_norms: of attention, of the feed-forward block: after them in encoders, before them in decoders.
        num_heads: of this layer (a cut model may differ from layer to layer).
        head_dim: width of one head.
        ffn_gate: a third linear of the feed-forward block, whose activation multiplies what `ffn_in` gives (Llama).
        num_kv_heads: heads of key and value, where several query heads share one; None: as many as heads.
        transposed: whether weights are held as (inputs, outputs), by Conv1D (GPT-2).

    In a cut model the paths of a sub-layer that was removed are None; its layer norm stays.
    """

    path: str
    attention: str | None
    query: str | None
    key: str | None
    value: str | None
    attention_output: str | None
    ffn_in: str | None
    ffn_out: str | None
    activation: str | None
    layer_norms: tuple[str, ...]
    num_heads: int
    head_dim: int
    ffn_gate: str | None = None
    num_kv_heads: int | None = None
    transposed: bool = False

    @property
    def linears(self) -> tuple[str, ...]:
        """Paths of the linears that are there, each once, in the order of the forward pass."""
        attention = (self.query, self.key, self.value, self.attention_output)
        paths = (*attention, self.ffn_gate, self.ffn_in, self.ffn_out)
        return tuple(dict.fromkeys(path for path in paths if path is not None))

    @property
    def fused(self) -> bool:
        """Whether query, key and value are the three equal parts of one linear's outputs."""
        return self.query is not None and self.query == self.key

    @property
    def unit_width(self) -> int:
        """Columns of `attention_output` of one unit: a head, or the query heads that share a key-value head."""
        return self.head_dim * (self.num_heads // self.num_kv_heads if self.num_kv_heads else 1)


@dataclass(frozen=True)
class Anatomy:
    """Paths of a model's parts.

    Attributes:
        family: `config.model_type`.
        base: path of the encoder (or decoder); "" where the network is the encoder itself.
        embeddings: path of the module whose output the first layer reads.
        layers: the transformer layers, first to last.
        pooler: path of the pooler, None where there is none.
        head: paths of the modules beside the encoder (classifier, masked-LM head ...), empty for a bare encoder.
    """

    family: str
    base: str
    embeddings: str
    layers: tuple[Layer, ...]
    pooler: str | None
    head: tuple[str, ...]

    @property
    def causal(self) -> bool:
        """Whether a token sees only what stands before it: a decoder."""
        return _FAMILIES[self.family].causal


@dataclass(frozen=True)
class _Names:
    """How one family spells its parts, relative to the encoder (`layers`, `embeddings`) or to a layer (the rest)."""

    layers: str
    attention: str
    query: str
    key: str
    value: str
    attention_output: str
    ffn_in: str
    ffn_out: str
    activation: str
    layer_norms: tuple[str, ...]
    num_heads: str | None
    head_dim: str = "attention_head_size"
    embeddings: str = "embeddings"
    ffn_gate: str | None = None
    transposed: bool = False
    causal: bool = False


_BERT = _Names(
    layers="encoder.layer",
    attention="attention.self",
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    attention_output="attention.output.dense",
    ffn_in="intermediate.dense",
    ffn_out="output.dense",
    activation="intermediate.intermediate_act_fn",
    layer_norms=("attention.output.LayerNorm", "output.LayerNorm"),
    num_heads="num_attention_heads",
)
_DISTILBERT = _Names(
    layers="transformer.layer",
    attention="attention",
    query="attention.q_lin",
    key="attention.k_lin",
    value="attention.v_lin",
    attention_output="attention.out_lin",
    ffn_in="ffn.lin1",
    ffn_out="ffn.lin2",
    activation="ffn.activation",
    layer_norms=("sa_layer_norm", "output_layer_norm"),
    num_heads="n_heads",
)
_GPT2 = _Names(
    layers="h",
    attention="attn",
    query="attn.c_attn",
    key="attn.c_attn",
    value="attn.c_attn",
    attention_output="attn.c_proj",
    ffn_in="mlp.c_fc",
    ffn_out="mlp.c_proj",
    activation="mlp.act",
    layer_norms=("ln_1", "ln_2"),
    num_heads="num_heads",
    head_dim="head_dim",
    embeddings="drop",
    transposed=True,
    causal=True,
)
_LLAMA = _Names(
    layers="layers",
    attention="self_attn",
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
    attention_output="self_attn.o_proj",
    ffn_in="mlp.up_proj",
    ffn_out="mlp.down_proj",
    activation="mlp.act_fn",
    layer_norms=("input_layernorm", "post_attention_layernorm"),
    num_heads=None,  # counted: the module does not know
    head_dim="head_dim",
    embeddings="embed_tokens",
    ffn_gate="mlp.gate_proj",
    causal=True,
)
_FAMILIES = {"bert": _BERT, "roberta": _BERT, "distilbert": _DISTILBERT, "gpt2": _GPT2, "llama": _LLAMA}
_FAMILIES["relu_head_bert"] = _BERT
_FAMILIES |= {f"pruned_{family}": names for family, names in _FAMILIES.items()}  # as `models.cut` leaves them
_FAMILIES["roberta-prelayernorm"] = replace(_BERT, layer_norms=("attention.LayerNorm", "intermediate.LayerNorm"))
_ATTENTION = ("attention", "query", "key", "value", "attention_output")
_FEED_FORWARD = ("ffn_in", "ffn_out", "activation", "ffn_gate")


def anatomy(net: nn.Module) -> Anatomy:
    """Return the typed names of the parts of `net`, a Transformers model with or without a head.

    Raises:
        UserError: the architecture is not among the known ones.
    """
    family = getattr(getattr(net, "config", None), "model_type", None)
    if family not in _FAMILIES:
        raise UserError(
            f"the parts of a {family or type(net).__name__!r} are not known: use one of {sorted(_FAMILIES)}"
        )
    names, base = _FAMILIES[family], _base(net)
    encoder = net.get_submodule(base)
    prefix = f"{base}." if base else ""
    count = len(encoder.get_submodule(names.layers))  # type: ignore[arg-type]
    return Anatomy(
        family=family,
        base=base,
        embeddings=f"{prefix}{names.embeddings}",
        layers=tuple(_layer(net, f"{prefix}{names.layers}.{i}", names) for i in range(count)),
        pooler=f"{prefix}pooler" if getattr(encoder, "pooler", None) is not None else None,
        head=tuple(name for name, _ in net.named_children() if name != base) if base else (),
    )


def _base(net: nn.Module) -> str:
    """Path of the encoder inside `net`: its `base_model_prefix`, or "" where `net` is the encoder."""
    prefix = getattr(net, "base_model_prefix", "")
    return prefix if prefix and hasattr(net, prefix) else ""


def _layer(net: nn.Module, path: str, names: _Names) -> Layer:
    layer = net.get_submodule(path)
    attention = layer.get_submodule(names.attention)
    removed: tuple[str, ...] = () if _has(layer, names.query) else _ATTENTION
    removed += () if _has(layer, names.ffn_out) else _FEED_FORWARD
    roles = {
        role: None if role in removed or getattr(names, role) is None else f"{path}.{getattr(names, role)}"
        for role in _ATTENTION + _FEED_FORWARD
    }
    head_dim = getattr(attention, names.head_dim)
    there = "query" not in removed
    return Layer(
        path=path,
        **roles,
        layer_norms=tuple(f"{path}.{name}" for name in names.layer_norms),
        num_heads=_heads(layer, names.query, head_dim, there)
        if names.num_heads is None
        else getattr(attention, names.num_heads),
        head_dim=head_dim,
        num_kv_heads=_heads(layer, names.key, head_dim, there) if names.num_heads is None else None,
        transposed=names.transposed,
    )


def _heads(layer: nn.Module, path: str, head_dim: int, there: bool) -> int:
    return int(layer.get_submodule(path).out_features) // head_dim if there else 0  # type: ignore[arg-type]


def _has(module: nn.Module, path: str) -> bool:
    try:
        module.get_submodule(path)
    except AttributeError:
        return False
    return True
