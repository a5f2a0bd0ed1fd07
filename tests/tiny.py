"""Tiny models of each family, with weights large enough that a wrong cut shows, and a batch for them."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSequenceClassification

from keepfrac.models.families import FAMILIES

HEADS = {
    "classification": AutoModelForSequenceClassification,
    "masked_lm": AutoModelForMaskedLM,
    "causal_lm": AutoModelForCausalLM,
}
BERT = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "max_position_embeddings": 40}
GROUPED = BERT | {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 4}  # 8 query heads on 4 of keys
WIDE = GROUPED | {"head_dim": 6}  # heads that are together wider than the residual
DISTANCES = {"relative_attention": True, "position_buckets": 4, "max_relative_positions": 40, "share_att_key": False}
WINDOWS = {"layer_types": ["full_attention", "sliding_attention", "sliding_attention"], "local_attention": 6}
SIZES = {  # where a family's names are not BERT's, or what makes its layers differ
    "distilbert": {"dim": 32, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 40},
    "albert": BERT | {"num_hidden_layers": 6, "num_hidden_groups": 3, "embedding_size": 16},
    "deberta-v2": BERT | DISTANCES | {"pos_att_type": ["c2p", "p2c"], "norm_rel_ebd": "layer_norm"},
    "modernbert": BERT | WINDOWS | {"cls_token_id": 1, "sep_token_id": 2},
    "eurobert": GROUPED,
    "gpt2": {"n_embd": 32, "n_head": 4, "n_inner": 48, "n_positions": 40},
    "llama": GROUPED,
    "mistral": GROUPED | {"sliding_window": 5},
    "qwen2": GROUPED | {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    "qwen3": WIDE,
    "smollm3": GROUPED | {"no_rope_layer_interval": 2, "use_sliding_window": True, "sliding_window": 5},
    "gemma3_text": WIDE | {"sliding_window_pattern": 2, "sliding_window": 5, "query_pre_attn_scalar": 6},
}
LAYERS = {"albert": "num_hidden_groups", "distilbert": "n_layers", "gpt2": "n_layer"}
DECODERS = tuple(name for name, row in FAMILIES.items() if row.causal)
EMBEDDINGS = ("embedding", "wte", "wpe", "embed_tokens")


def tiny(family="bert", head=None, layers=3, attention="eager", **config):
    """Returns a model of hidden 32, 4 heads of 8, 48 neurons, in eval mode; `config` goes over these sizes.

    Its head is one of HEADS: by default a language model's for decoders, else a classifier of 3 labels.
    """
    decoder = family in DECODERS
    special = {"pad_token_id": 0} | ({"bos_token_id": 1, "eos_token_id": 2} if decoder else {})
    sizes = SIZES.get(family, BERT) | {LAYERS.get(family, "num_hidden_layers"): layers}
    shape = {"vocab_size": 60, "num_labels": 3, "attn_implementation": attention} | special | sizes | config
    kind = HEADS[head or ("causal_lm" if decoder else "classification")]
    net = kind.from_config(AutoConfig.for_model(family, **shape))
    as_they_are = (*EMBEDDINGS, "lm_head") if decoder else EMBEDDINGS
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if parameter.ndim == 2 and not any(part in name for part in as_they_are):
                parameter.normal_(std=0.3)
            elif name.endswith("bias"):
                parameter.normal_(std=0.2)
    return net.eval()


def stock(family="bert", hidden=32, heads=4, inner=64, layers=2, dropout=0.0, act="gelu", seed=0, **config):
    """Returns a classifier with Transformers' own initial weights, the same each time, in train mode."""
    row = FAMILIES[family]
    rates = dict.fromkeys((*row.dropouts, *row.attention_dropouts), dropout)
    rates |= {"seq_classif_dropout": dropout} if family == "distilbert" else {}
    sizes = {"hidden_size": hidden, "num_attention_heads": heads, row.neurons: inner, row.depth: layers}
    torch.manual_seed(seed)
    given = rates | sizes | {row.function: act, "max_position_embeddings": 64} | config
    return AutoModelForSequenceClassification.from_config(AutoConfig.for_model(family, **given)).train()


def inputs(rows=3, length=9):
    """Returns input ids and an attention mask with padding."""
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(5, 60, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(rows):
        mask[row, length - row :] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}
