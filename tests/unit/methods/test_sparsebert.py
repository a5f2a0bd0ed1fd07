"""Its optimizer against a BertAdam written by hand, and its mask updates against the released rule."""

import pytest
import torch
from torch import nn

from keepfrac.methods.sparsebert import SparseBert
from keepfrac.training.finetune import Loop


class Text:
    def metrics(self, split):
        return None


def method(total: int, keep: float = 0.05, net=None) -> SparseBert:
    off = dict.fromkeys(("fgm", "ema", "r_drop", "layer_decay"))
    loop = Loop(lr=3e-3, weight_decay=0.0, warmup=0.1, clip=None, total_steps=total, **off)
    settings = SparseBert.Settings(name="sparsebert", keep_frac=keep, updates=100, clip_each=1.0, head="own")
    return SparseBert(net=net or nn.Linear(3, 2), task=Text(), loop=loop, settings=settings)


def bert_adam(parameter, moments, gradient, lr):
    """One step of pytorch-pretrained-bert's BertAdam with schedule none, from its description."""
    gradient = gradient * min(1.0, 1.0 / (gradient.norm() + 1e-6))
    moments[0].mul_(0.9).add_(gradient, alpha=0.1)
    moments[1].mul_(0.999).add_(gradient.square(), alpha=0.001)
    return parameter - lr * moments[0] / (moments[1].sqrt() + 1e-6)


def test_the_rate_undoes_the_bias_correction():
    net = nn.Linear(3, 2)
    own = method(50, net=net)
    settings = own.configure_optimizers()
    optimizer, scheduler = settings["optimizer"], settings["lr_scheduler"]["scheduler"]
    by_hand = {name: p.detach().clone() for name, p in net.named_parameters()}
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in by_hand.items()}
    for step in range(20):
        torch.manual_seed(step)
        optimizer.zero_grad()
        net(torch.randn(4, 3)).square().sum().backward()
        gradients = {name: p.grad.clone() for name, p in net.named_parameters()}
        own.configure_gradient_clipping(optimizer)
        optimizer.step()
        scheduler.step()
        for name, parameter in by_hand.items():
            by_hand[name] = bert_adam(parameter, moments[name], gradients[name], 3e-3)
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(parameter.detach(), by_hand[name], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("total", "changes", "last"), [(84_612, 100, 12), (1250, 104, 2), (1000, 99, 10), (20, 19, 1)])
def test_when_the_released_code_changes_its_masks(total, changes, last):
    own = method(total)
    targets = [own.target(done) for done in range(1, total + 1)]
    shares = [share for share in targets if share is not None]
    steps = [done for done, share in enumerate(targets, 1) if share is not None]
    assert len(shares) == changes and total - steps[-1] == last
    every = max(1, round(total / 100))
    assert shares[0] == pytest.approx(0.05 + 0.95 * (1 - 1 / (total // every)) ** 3)
    assert shares[-1] == pytest.approx(0.05, abs=2e-4)
