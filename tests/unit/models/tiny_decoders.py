"""Tiny decoders of each family, with weights large enough that a wrong cut shows."""

import torch
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)

CLASSES = {
    "gpt2": (GPT2Config, GPT2LMHeadModel, GPT2ForSequenceClassification),
    "llama": (LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification),
}


def tiny_decoder(family="gpt2", head="causal_lm", layers=3, attention="eager", **settings):
    """Returns a decoder of hidden 32, 4 heads of 8 (Llama: 8 query heads of 4 on 4 key-value heads), 48 neurons."""
    config_class, causal_lm, classifier = CLASSES[family]
    sizes = {"vocab_size": 60, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    sizes |= {"attn_implementation": attention, "num_labels": 3}
    if family == "gpt2":
        sizes |= {"n_embd": 32, "n_head": 4, "n_layer": layers, "n_inner": 48, "n_positions": 40}
    else:
        sizes |= {"hidden_size": 32, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 4}
        sizes |= {"num_hidden_layers": layers, "intermediate_size": 48, "max_position_embeddings": 40}
    net = (causal_lm if head == "causal_lm" else classifier)(config_class(**sizes | settings))
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if parameter.ndim == 2 and not any(part in name for part in ("wte", "wpe", "embed_tokens", "lm_head")):
                parameter.normal_(std=0.3)
            elif name.endswith("bias"):
                parameter.normal_(std=0.2)
    return net.eval()
