"""Small networks and dense references that the tests of `late` share."""

import math
import shutil

import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, RobertaConfig, RobertaForSequenceClassification

from keepfrac.sparse import act8bit

KERNELS = ("torch", *(("cpp",) if shutil.which("c++") and shutil.which("ninja") else ()))
FAMILIES = {
    "bert": (BertConfig, BertForSequenceClassification),
    "roberta": (RobertaConfig, RobertaForSequenceClassification),
}


def network(family="bert", p=0.0, width=96, heads=4, inner=200, layers=2, **config):
    """The same weights each time."""
    torch.manual_seed(1)
    config_class, net_class = FAMILIES[family]
    return net_class(
        config_class(
            hidden_size=width,
            num_attention_heads=heads,
            intermediate_size=inner,
            num_hidden_layers=layers,
            vocab_size=100,
            max_position_embeddings=140,
            hidden_dropout_prob=p,
            attention_probs_dropout_prob=p,
            **config,
        )
    ).train()


SETTINGS = {"rows": "wta", "store": "exact", "context": "save", "skip_zero_rows": False, "kernels": "auto"}


def settings(keep_frac=1.0, **given):
    """Settings that round nothing."""
    whole = {"name": "late", "keep_frac": keep_frac, "selection_seed": 0, **SETTINGS}
    return act8bit.Act8bit.Settings(**whole | given)


def converted(net, keep_frac=1.0, **given):
    """`convert` with defaults; returns its handle."""
    return act8bit.convert(net, settings(keep_frac, **given))


def batch(rows=5, length=17, seed=0, lengths=None):
    """A padded batch with labels. The token 1 is RoBERTa's padding."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 100, (rows, length), generator=generator)
    mask = torch.ones(rows, length, dtype=torch.long)
    for row, real in enumerate(lengths or [length] * rows):
        mask[row, real:] = 0
    return {"input_ids": ids.masked_fill(mask == 0, 1), "attention_mask": mask, "labels": torch.arange(rows) % 2}


def gradients(net, data, times=1):
    """Loss of one forward pass, and the gradients of all parameters."""
    net.zero_grad()
    loss = net(**data).loss
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


def error(got, want):
    """Relative error of all gradients as one vector."""
    assert got.keys() == want.keys()
    difference = math.sqrt(sum(((got[name] - want[name]).double() ** 2).sum() for name in want))
    return difference / math.sqrt(sum((one.double() ** 2).sum() for one in want.values()))


def stack(net: nn.Module, x, mask=None):
    """Runs the encoder's layers alone."""
    for layer in net.base_model.encoder.layer:
        x = layer(x, mask)
    return x
