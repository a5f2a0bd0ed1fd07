"""Turns a stock model into one that saves less: `sparsify(net)`, or `sparsify(net, sites, selector, seed)`.

| site       | replaces                                      | error                                   |
| ---------- | --------------------------------------------- | --------------------------------------- |
| linear     | the six linears of each layer                 | none in dX; dW is that of the kept part |
| activation | ReLU by one that saves one bit per number     | none                                    |
| dropout    | hidden dropout, likewise                      | none                                    |
| attention  | the products Q K^T and P V                    | dX too, grows with depth                |
| softmax    | softmax and P V, fused                        | dX too, grows with depth                |
| layer_norm | the layers' Layer-, RMSNorms (normalised x)   | dX too, grows with depth                |

Relative error of dX below the first of six layers, by keep_frac; MiniLM with a fresh head, 32 sentences, rule top:

| site              | elements .1 .3 .5 | columns .1 .3 .5 | tokens .1 .3 .5 |
| ----------------- | ----------------- | ---------------- | --------------- |
| linear            | 0    0    0       | 0    0    0      | 0    0    0     |
| attention         | .58  .36  .20     | .62  .58  .50    | .62  .61  .59   |
| softmax           | .57  .29  .17     | .68  .44  .32    | 1.00 .87  .70   |
| attention+softmax | .71  .44  .26     | .76  .65  .56    | 1.00 .90  .79   |
| layer_norm        | .16  .08  .04     | .26  .17  .11    | .34  .26  .19   |

A linear frees nothing where another operation saves the same tensor anyway (it is *pinned*): there it stays dense:

* scaled_dot_product_attention saves its output, the input of the attention-output linear. With it that linear is not a
  site; the report lists it as pinned. (On a CPU, attention dropout makes PyTorch take a kernel that does not save it.
  The linear is left out all the same: a method's gradients must not depend on the device.)
* torch's ReLU saves its output, the input of the second feed-forward linear. With a sparse linear behind it, ReLU
  therefore always becomes the one-bit ReLU: its gradient is the same, and only so does the pair save anything.
* any other activation that saves its output (tanh, sigmoid) makes the linear behind it fall back: an error unless
  allowed.

Under `torch.compile` the sites run as they are, between compiled graphs: the gradients are the same, the time between
graphs is not optimised. Activation checkpointing works (see `context`). With DistributedDataParallel each process
selects from its own share of the batch; draws depend on the seed alone, so random columns, and elements chosen per
sample, are those of one process with the whole batch; columns chosen by norm may differ.

What an earlier cut removed is passed over; of a linear that is held as two factors each is a site.

The pooler and the head see (batch, features) inputs and stay as they are.
"""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from torch import nn

from keepfrac.errors import UserError
from keepfrac.models.anatomy import anatomy
from keepfrac.settings import choice, count, settings, share, some_of
from keepfrac.sparse.builder import SITES, Builder
from keepfrac.sparse.context import Context
from keepfrac.sparse.protocol import BackwardSaver
from keepfrac.sparse.selection.selectors import NORMS, RULES, SCALES, SCOPES, UNITS, Selector
from keepfrac.sparse.sparsified import Sparsified, refuse_fallbacks


def sparsify(
    net: nn.Module,
    sites: Sequence[str] = ("linear",),
    selector: Selector | float = 0.3,
    seed: int = 0,
    allow_fallback: bool = False,
) -> Sparsified:
    """Changes `net` in place so that it saves a part of its activations; returns the handle on what was changed.

    Freeze what is to be frozen before. Parameters stay the same objects under the same names.

    Args:
        net: a Transformers model of a family of `models.families`, with or without a head.
        sites: any of linear, attention, softmax, activation, layer_norm, dropout.
        selector: what to keep at each site; a number in (0, 1]: that share of the columns, drawn by their norm.
        seed: of the selection's own randomness.
        allow_fallback: whether a linear may stay dense without an error.

    Raises:
        UserError: an unknown site, a share that is not in (0, 1], scale=inverse with a site that it does not make
            unbiased, an attention that never holds what a site would keep, or a linear that cannot save anything.
    """
    selector = selector if isinstance(selector, Selector) else Selector(selector)
    unknown = sorted(set(sites) - set(SITES))
    if unknown or not sites:
        raise UserError(f"sites={list(sites)}: choose among {', '.join(SITES)}")
    squared = [site for site in ("softmax", "layer_norm") if site in sites]
    if selector.scale == "inverse" and squared:
        raise UserError(
            f"scale=inverse is not unbiased with site {', '.join(squared)}, whose kept part enters dX squared: "
            "use scale=none or leave the site out"
        )
    build = Builder(net, anatomy(net), selector, context=Context(seed))
    for site in SITES:
        if site in sites:
            getattr(build, site)()
    if not allow_fallback:
        refuse_fallbacks([site for site in build.sites if site.fallback and not site.saved_elsewhere])
    build.undo.append(build.context.attach(net).remove)
    return Sparsified(build.sites, build.context, selector, undo=build.undo)


class SparseActivations(BackwardSaver):
    """`norm`, `rand`, `bkrz`: sites that keep what a selector chooses."""

    @settings
    class Settings(BackwardSaver.Settings):
        sites: Sequence[str] = some_of("what is made sparse; activation and dropout are exact, as packed bits", *SITES)
        unit: str = choice("what is kept or not as one", *UNITS)
        rule: str = choice("how units are chosen", *RULES)
        norm: str = choice("the size by which units are ranked; var: the variance", *NORMS)
        scale: str = choice("inverse: what is kept by chance is divided by its probability", *SCALES)
        scope: str = choice("among whom units compete", *SCOPES)
        coverage: float = share("of the budget, what visits all columns in turn")
        share: float = share("of the budget, what rule=mixed draws at random")
        selection_seed: int = count("seed of the random choices", least=0)

        def check(self) -> None:
            super().check()
            self.selector()

        def selector(self) -> Selector:
            """Returns what chooses.

            Raises:
                UserError: two values do not go together.
            """
            return Selector(**{field.name: getattr(self, field.name) for field in fields(Selector)})

    def convert(self, net: nn.Module) -> Sparsified:
        own = self.settings
        handle = sparsify(net, own.sites, own.selector(), seed=own.selection_seed)
        self._refuse_fallbacks_of_the_first_step(net, handle)
        return handle

    @staticmethod
    def _refuse_fallbacks_of_the_first_step(net: nn.Module, handle: Sparsified) -> None:
        """Raises UserError, after the first forward pass in training, where a linear had to stay dense."""

        def check(*_: Any) -> None:
            if handle.context.step:
                hook.remove()
                handle.check()

        hook = net.register_forward_hook(check)
        handle.undo.append(hook.remove)

    def figures(self) -> dict[str, Any]:
        return {**super().figures(), "never_selected": self.handle.never_selected()}
