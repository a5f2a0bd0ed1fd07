"""Tiny encoders of each family, with weights large enough that a wrong cut shows."""

import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForMaskedLM,
    DistilBertForSequenceClassification,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
)

CLASSES = {
    "bert": (BertConfig, BertForSequenceClassification, BertForMaskedLM),
    "roberta": (RobertaConfig, RobertaForSequenceClassification, RobertaForMaskedLM),
    "distilbert": (DistilBertConfig, DistilBertForSequenceClassification, DistilBertForMaskedLM),
}


def tiny(family="bert", head="classification", layers=3, attention="eager"):
    """Returns an encoder of hidden 32, 4 heads of 8, 48 neurons, in eval mode."""
    config_class, classifier, masked_lm = CLASSES[family]
    sizes = {"vocab_size": 60, "pad_token_id": 0, "attn_implementation": attention, "num_labels": 3}
    if family == "distilbert":
        sizes |= {"dim": 32, "n_heads": 4, "n_layers": layers, "hidden_dim": 48, "max_position_embeddings": 40}
    else:
        sizes |= {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": layers}
        sizes |= {"intermediate_size": 48, "max_position_embeddings": 40}
    net = (classifier if head == "classification" else masked_lm)(config_class(**sizes))
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if parameter.ndim == 2 and "embedding" not in name:
                parameter.normal_(std=0.3)
            elif name.endswith("bias"):
                parameter.normal_(std=0.2)
    return net.eval()


def inputs(rows=3, length=9):
    """Returns input ids and an attention mask with padding."""
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(5, 60, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(rows):
        mask[row, length - row :] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}
