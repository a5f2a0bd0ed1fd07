"""Small stock models from their configs, for the tests of this folder."""

import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from keepfrac.tensors.change_class import change_class


def small_net(
    family: str = "bert", attention: str = "eager", act: str = "gelu", dropout: float = 0.0, layers: int = 2
) -> nn.Module:
    """Hidden 32, four heads, in train mode."""
    torch.manual_seed(0)
    sizes = {"num_labels": 3, "vocab_size": 50, "max_position_embeddings": 64, "attn_implementation": attention}
    if family == "distilbert":
        shape = {"dim": 32, "n_layers": layers, "n_heads": 4, "hidden_dim": 64, "activation": act}
        rates = {"dropout": dropout, "attention_dropout": dropout, "seq_classif_dropout": dropout}
        config = DistilBertConfig(**shape, **rates, **sizes)
        return DistilBertForSequenceClassification(config).train()
    shape = {"hidden_size": 32, "num_hidden_layers": layers, "num_attention_heads": 4, "intermediate_size": 64}
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    config_class, net_class = {
        "bert": (BertConfig, BertForSequenceClassification),
        "roberta": (RobertaConfig, RobertaForSequenceClassification),
    }[family]
    return net_class(config_class(hidden_act=act, **shape, **rates, **sizes)).train()


def small_batch(padded: bool = True) -> dict[str, torch.Tensor]:
    """Four sentences of 16 tokens; 16, 11, 7 and 3 of them real where padded."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(5, 50, (4, 16), generator=generator)
    lengths = torch.tensor([[16], [11], [7], [3]]) if padded else torch.full((4, 1), 16)
    mask = (torch.arange(16) < lengths).long()
    return {"input_ids": tokens * mask + (1 - mask), "attention_mask": mask, "labels": torch.tensor([0, 1, 2, 0])}


def gradients(net: nn.Module) -> dict[str, torch.Tensor]:
    """Gradients by parameter name."""
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


def changed(module, new, **attributes):
    """`module`, made one of the class `new`."""
    change_class(module, new, **attributes)
    return module
