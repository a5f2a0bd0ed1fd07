"""Small networks and dense references that the tests of `late` share."""

import math
import shutil

import torch
from torch import nn

from keepfrac.sparse import act8bit
from keepfrac.sparse.act8bit import Act8bit
from tests.tiny import stock

KERNELS = ("torch", *(("cpp",) if shutil.which("c++") and shutil.which("ninja") else ()))
FAMILIES = ("bert", "roberta", "roberta-prelayernorm", "distilbert")
RAGGED = {"rows": 5, "length": 17, "lengths": [17, 9, 17, 1, 4]}
SETTINGS = {"rows": "wta", "store": "exact", "context": "save", "skip_zero_rows": False, "kernels": "auto"}


def network(family="bert", p=0.0, width=96, heads=4, inner=200, layers=2, **config):
    """The same weights each time."""
    places = {"vocab_size": 100, "max_position_embeddings": 140}
    return stock(family, width, heads, inner, layers, dropout=p, **{"seed": 1, **places, **config})


def quiet(net):
    """The network without torch's own dropout: that of the embeddings and of the classifier."""
    net.bert.embeddings.dropout.p = net.dropout.p = 0.0
    return net


def settings(keep_frac=1.0, **given):
    """Settings that round nothing."""
    return Act8bit.Settings(**{"name": "late", "keep_frac": keep_frac, "selection_seed": 0, **SETTINGS, **given})


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


def gradients(net, data):
    """Loss of one forward pass, and the gradients of all parameters."""
    net.zero_grad()
    loss = net(**data).loss
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


def error(got, want, names=None):
    """Relative error of all gradients, or of those with some names, as one vector."""
    assert names is not None or got.keys() == want.keys()
    names = want.keys() if names is None else names
    difference = math.sqrt(sum(((got[name] - want[name]).double() ** 2).sum() for name in names))
    return difference / math.sqrt(sum((want[name].double() ** 2).sum() for name in names))


def stack(net: nn.Module, x, mask=None):
    """Runs the encoder's layers alone."""
    base = net.base_model
    for layer in (base.transformer if hasattr(base, "transformer") else base.encoder).layer:
        x = layer(x, mask)
    return x
