"""The model families, one row each: the only file that spells how a family calls its parts.

Everything else asks here, most of it by `models.anatomy`: which linear is the query, where the LayerNorm stands, what
the configuration calls the number of layers, whether attention can be recorded, what replaces a removed sub-layer.

To add a family, write its row in FAMILIES under its `config.model_type` (often `replace` of a row that is there), and a
tiny configuration of it in `tests/tiny.py`; then `python -m tests.contract.test_families --write` tries
every feature on it and writes what works into this folder's README.

This file imports nothing but Python: a cut model is delivered with a copy of it and of `pruned.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

PRUNED = "pruned_"
"""Prefix of the model_type of a family's cut models."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """How one family spells its parts.

    Attributes:
        layers, embeddings: paths inside the base model: the list of layers; the module whose output the first reads.
        attention: the module that calls the attention function (it owns query, key and value); this path and all the
            following are inside a layer.
        query, key, value, attention_output, ffn_in, ffn_out: the six linears. One linear whose outputs are query, key
            and value, in equal parts and this order, is named three times.
        ffn_gate: a third linear of the feed-forward block, whose activation multiplies what `ffn_in` gives; None: none.
            One linear whose outputs are the gate and `ffn_in`, in equal parts and this order, is named twice.
        activation: the activation between `ffn_in` and `ffn_out`; with a gate, that of the gate.
        feed_forward: the module of `ffn_in` and the activation, and of `ffn_out` unless its LayerNorm has a module; in
            a layer without such modules, `ffn_in`.
        layer_norms: of the attention, of the feed-forward block.
        output_norms: of families with a second pair, of the two sub-layers' outputs before they are added.
        rms_norm: None: the norms are LayerNorms; else RMSNorms, which multiply with this plus their weight.
        query_norm, key_norm: norms of each head's query and key; None: there are none.
        norm_at: where they stand: "after" the sum with the residual, or "before" the sub-layer.
        bare_first: whether the first layer has nothing in the place of the attention's.
        probability_dropout: the dropout module of the attention probabilities; None: the family has no such module.
        attention_dropout: that of the attention sub-layer's output.
        inner_dropout: that of what `ffn_out` reads; None: there is none.
        ffn_dropout: that of the feed-forward block's output.
        num_heads: attribute of the attention module with the number of heads; None: it has none.
        head_dim: attribute with the width of one head.
        width: attribute with num_heads * head_dim, where the forward pass reads it.
        layout: how a linear holds its matrix: "plain" (outputs, inputs), or "conv1d" (inputs, outputs).
        causal: whether a token sees only what stands before it: a decoder.
        rotary: whether queries and keys are rotated by their positions.
        attention_interface: whether attention goes through Transformers' AttentionInterface. Without it the attention
            function is recorded or replaced where `models.own_attention` knows the module; elsewhere that is refused.
        positions: linears, where a model has them, that make keys and queries of distances: cut with the heads.
        head_bias: whether the attention is given a bias that has a place for every head of the dense model.
        removed: what stands where a cut removed the attention, the feed-forward block: "zeros", which its caller adds
            to the residual; "norm", the module of its LayerNorm gives that of the residual alone; "residual", the
            module of its last linear gives the residual alone. None: a model of this family cannot be cut.
        why_not_cut: the rest of that refusal, where there is more to say.
        depth, neurons, function: keys of the configuration: number of layers, feed-forward width, activation.
        runs: key of the number of layers that are run, where each layer is run several times in a row; None: once.
        layer_lists: keys of the configuration that say something of each layer: they are cut with the layers.
        dropouts, attention_dropouts: keys of the configuration with the rates of hidden and of attention dropout.
        new_parts: names of modules that a task creates: heads, and an encoder's pooler.
        first_token_readers: classes of poolers and heads that are given all hidden states and read the first token.
        first_token_views: modules of the head that are given the first token as a view of all hidden states.
    """

    layers: str
    embeddings: str = "embeddings"
    attention: str
    query: str
    key: str
    value: str
    attention_output: str
    ffn_in: str
    ffn_out: str
    ffn_gate: str | None = None
    activation: str
    feed_forward: str
    layer_norms: tuple[str, str]
    output_norms: tuple[str, str] | None = None
    rms_norm: float | None = None
    query_norm: str | None = None
    key_norm: str | None = None
    norm_at: str = "after"
    bare_first: bool = False
    probability_dropout: str | None = None
    attention_dropout: str | None = None
    ffn_dropout: str | None = None
    inner_dropout: str | None = None
    num_heads: str | None
    head_dim: str = "head_dim"
    width: str | None = None
    layout: str = "plain"
    causal: bool = False
    rotary: bool = False
    attention_interface: bool = True
    positions: tuple[str, ...] = ()
    head_bias: bool = False
    removed: tuple[str, str] | None = ("zeros", "zeros")
    why_not_cut: str = ""
    depth: str = "num_hidden_layers"
    runs: str | None = None
    neurons: str = "intermediate_size"
    function: str = "hidden_act"
    layer_lists: tuple[str, ...] = ()
    dropouts: tuple[str, ...] = ()
    attention_dropouts: tuple[str, ...] = ()
    new_parts: tuple[str, ...] = ()
    first_token_readers: tuple[str, ...] = ()
    first_token_views: tuple[str, ...] = ()


BERT = Family(
    layers="encoder.layer",
    attention="attention.self",
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    attention_output="attention.output.dense",
    ffn_in="intermediate.dense",
    ffn_out="output.dense",
    activation="intermediate.intermediate_act_fn",
    feed_forward="intermediate",
    layer_norms=("attention.output.LayerNorm", "output.LayerNorm"),
    probability_dropout="attention.self.dropout",
    attention_dropout="attention.output.dropout",
    ffn_dropout="output.dropout",
    num_heads="num_attention_heads",
    head_dim="attention_head_size",
    width="all_head_size",
    removed=("norm", "norm"),
    dropouts=("hidden_dropout_prob",),
    attention_dropouts=("attention_probs_dropout_prob",),
    new_parts=("classifier", "pooler", "cls"),
    first_token_readers=("BertPooler",),
)
ROBERTA = replace(
    BERT,
    new_parts=("classifier", "pooler", "lm_head"),
    first_token_readers=("RobertaPooler", "RobertaClassificationHead"),
)
LLAMA = Family(
    layers="layers",
    embeddings="embed_tokens",
    attention="self_attn",
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
    attention_output="self_attn.o_proj",
    ffn_in="mlp.up_proj",
    ffn_out="mlp.down_proj",
    ffn_gate="mlp.gate_proj",
    activation="mlp.act_fn",
    feed_forward="mlp",
    layer_norms=("input_layernorm", "post_attention_layernorm"),
    rms_norm=0.0,
    norm_at="before",
    num_heads=None,
    causal=True,
    rotary=True,
    attention_dropouts=("attention_dropout",),
    new_parts=("score", "lm_head"),
)
QWEN3 = replace(LLAMA, query_norm="self_attn.q_norm", key_norm="self_attn.k_norm", layer_lists=("layer_types",))
FAMILIES: dict[str, Family] = {
    "bert": BERT,
    "relu_head_bert": replace(
        BERT, removed=None, why_not_cut="its head is SparseBERT's; train it with method.head=own distill.head=own"
    ),
    "roberta": ROBERTA,
    "roberta-prelayernorm": replace(
        ROBERTA,
        layer_norms=("attention.LayerNorm", "intermediate.LayerNorm"),
        norm_at="before",
        removed=("residual", "residual"),
        first_token_readers=("RobertaPreLayerNormPooler", "RobertaPreLayerNormClassificationHead"),
    ),
    "xlm-roberta": replace(ROBERTA, first_token_readers=("XLMRobertaPooler", "XLMRobertaClassificationHead")),
    "camembert": replace(ROBERTA, first_token_readers=("CamembertPooler", "CamembertClassificationHead")),
    "xlm-roberta-xl": replace(
        ROBERTA,
        layer_norms=("attention.self_attn_layer_norm", "LayerNorm"),
        norm_at="before",
        ffn_dropout=None,
        removed=("residual", "residual"),
        first_token_readers=("XLMRobertaXLPooler", "XLMRobertaXLClassificationHead"),
    ),
    "electra": replace(
        BERT,
        new_parts=("classifier", "generator_predictions", "generator_lm_head", "discriminator_predictions"),
        first_token_readers=("ElectraClassificationHead",),
    ),
    "mpnet": replace(
        ROBERTA,
        attention="attention.attn",
        query="attention.attn.q",
        key="attention.attn.k",
        value="attention.attn.v",
        attention_output="attention.attn.o",
        layer_norms=("attention.LayerNorm", "output.LayerNorm"),
        probability_dropout="attention.attn.dropout",
        attention_dropout="attention.dropout",
        attention_interface=False,
        head_bias=True,
        removed=("zeros", "norm"),
        first_token_readers=("MPNetPooler", "MPNetClassificationHead"),
    ),
    "albert": replace(
        BERT,
        layers="encoder.albert_layer_groups",
        attention="albert_layers.0.attention",
        query="albert_layers.0.attention.query",
        key="albert_layers.0.attention.key",
        value="albert_layers.0.attention.value",
        attention_output="albert_layers.0.attention.dense",
        ffn_in="albert_layers.0.ffn",
        ffn_out="albert_layers.0.ffn_output",
        activation="albert_layers.0.activation",
        feed_forward="albert_layers.0.ffn",
        layer_norms=("albert_layers.0.attention.LayerNorm", "albert_layers.0.full_layer_layer_norm"),
        probability_dropout="albert_layers.0.attention.attention_dropout",
        attention_dropout="albert_layers.0.attention.output_dropout",
        ffn_dropout=None,
        depth="num_hidden_groups",
        runs="num_hidden_layers",
        removed=("norm", "zeros"),
        dropouts=("hidden_dropout_prob", "classifier_dropout_prob"),
        new_parts=("classifier", "pooler", "predictions", "sop_classifier"),
        first_token_readers=(),
    ),
    "deberta-v2": replace(
        BERT,
        query="attention.self.query_proj",
        key="attention.self.key_proj",
        value="attention.self.value_proj",
        attention_interface=False,
        positions=("attention.self.pos_key_proj", "attention.self.pos_query_proj"),
        new_parts=("classifier", "pooler", "cls", "lm_predictions"),
        first_token_readers=("ContextPooler",),
    ),
    "distilbert": Family(
        layers="transformer.layer",
        attention="attention",
        query="attention.q_lin",
        key="attention.k_lin",
        value="attention.v_lin",
        attention_output="attention.out_lin",
        ffn_in="ffn.lin1",
        ffn_out="ffn.lin2",
        activation="ffn.activation",
        feed_forward="ffn",
        layer_norms=("sa_layer_norm", "output_layer_norm"),
        probability_dropout="attention.dropout",
        ffn_dropout="ffn.dropout",
        num_heads="n_heads",
        head_dim="attention_head_size",
        depth="n_layers",
        neurons="hidden_dim",
        function="activation",
        dropouts=("dropout",),
        attention_dropouts=("attention_dropout",),
        new_parts=("classifier", "pre_classifier", "vocab_projector", "vocab_transform"),
        first_token_views=("pre_classifier",),
    ),
    "modernbert": Family(
        layers="layers",
        attention="attn",
        query="attn.Wqkv",
        key="attn.Wqkv",
        value="attn.Wqkv",
        attention_output="attn.Wo",
        ffn_gate="mlp.Wi",
        ffn_in="mlp.Wi",
        ffn_out="mlp.Wo",
        activation="mlp.act",
        feed_forward="mlp",
        layer_norms=("attn_norm", "mlp_norm"),
        norm_at="before",
        bare_first=True,
        attention_dropout="attn.out_drop",
        inner_dropout="mlp.drop",
        num_heads=None,
        rotary=True,
        function="hidden_activation",
        layer_lists=("layer_types",),
        dropouts=("embedding_dropout", "mlp_dropout", "classifier_dropout"),
        attention_dropouts=("attention_dropout",),
        new_parts=("classifier", "head", "decoder"),
    ),
    "eurobert": replace(LLAMA, causal=False, new_parts=("classifier", "dense", "lm_head")),
    "nomic_bert": replace(
        LLAMA,
        embeddings="embeddings",
        layer_norms=("post_attention_layernorm", "post_mlp_layernorm"),
        norm_at="after",
        rms_norm=None,
        attention_dropout="post_attention_dropout",
        ffn_dropout="post_mlp_dropout",
        causal=False,
        dropouts=("hidden_dropout_prob",),
        attention_dropouts=("attention_probs_dropout_prob",),
        new_parts=("classifier", "pooler", "cls"),
        first_token_readers=("NomicBertPooler",),
    ),
    "gpt2": Family(
        layers="h",
        embeddings="drop",
        attention="attn",
        query="attn.c_attn",
        key="attn.c_attn",
        value="attn.c_attn",
        attention_output="attn.c_proj",
        ffn_in="mlp.c_fc",
        ffn_out="mlp.c_proj",
        activation="mlp.act",
        feed_forward="mlp",
        layer_norms=("ln_1", "ln_2"),
        norm_at="before",
        probability_dropout="attn.attn_dropout",
        attention_dropout="attn.resid_dropout",
        ffn_dropout="mlp.dropout",
        num_heads="num_heads",
        width="split_size",
        layout="conv1d",
        causal=True,
        depth="n_layer",
        neurons="n_inner",
        function="activation_function",
        dropouts=("resid_pdrop", "embd_pdrop"),
        attention_dropouts=("attn_pdrop",),
        new_parts=("score", "lm_head"),
    ),
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": replace(LLAMA, layer_lists=("layer_types",)),
    "qwen3": QWEN3,
    "smollm3": replace(LLAMA, layer_lists=("layer_types", "no_rope_layers")),
    "gemma3_text": replace(
        QWEN3,
        layer_norms=("input_layernorm", "pre_feedforward_layernorm"),
        output_norms=("post_attention_layernorm", "post_feedforward_layernorm"),
        rms_norm=1.0,
        function="hidden_activation",
    ),
}
