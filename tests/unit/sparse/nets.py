"""What the tests of this folder share: small stock models, a batch, and what a backward pass leaves."""

import torch
from torch import nn

from keepfrac.tensors.change_class import change_class
from tests.tiny import stock


def small_net(family="bert", attention="eager", act="gelu", dropout=0.0, layers=2) -> nn.Module:
    """Hidden 32, four heads, in train mode."""
    sizes = {"layers": layers, "num_labels": 3, "vocab_size": 50}
    return stock(family, act=act, dropout=dropout, attn_implementation=attention, **sizes)


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


def passes(module, x, autocast=False):
    """Output, gradients of x, weight and bias for a fixed output gradient."""
    x = x.clone().requires_grad_()
    with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
        y = module(x)
    y.backward(torch.cos(torch.arange(y.numel(), device=y.device).view(y.shape)).to(y.dtype))
    found = (y.detach(), x.grad, module.weight.grad, module.bias.grad)
    module.zero_grad()
    return found
