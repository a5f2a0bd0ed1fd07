"""Turn a stock model into one that saves less: `sparsify(net, sites, selector, seed)`.

| site       | replaces                                      | error it brings                         |
| ---------- | --------------------------------------------- | --------------------------------------- |
| linear     | the six linears of each layer                 | none in dX; dW is that of the kept part |
| activation | ReLU by one that saves one bit per number     | none                                    |
| attention  | the products Q K^T and P V                    | dX too, grows with depth                |
| softmax    | softmax and P V, fused                        | dX too, grows with depth                |
| layer_norm | the layers' LayerNorms (normalised input)     | dX too, grows with depth                |

Relative error of dX below the first of six layers, by keep_frac; MiniLM with a fresh head, 32 sentences, rule top:

| site              | elements .1 .3 .5 | columns .1 .3 .5 | tokens .1 .3 .5 |
| ----------------- | ----------------- | ---------------- | --------------- |
| linear            | 0    0    0       | 0    0    0      | 0    0    0     |
| attention         | .58  .36  .20     | .62  .58  .50    | .62  .61  .59   |
| softmax           | .57  .29  .17     | .68  .44  .32    | 1.00 .87  .70   |
| attention+softmax | .71  .44  .26     | .76  .65  .56    | 1.00 .90  .79   |
| layer_norm        | .16  .08  .04     | .26  .17  .11    | .34  .26  .19   |

A linear frees nothing where a neighbour saves the same tensor anyway (it is *pinned*); there the dense layer stays:

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

The pooler and the head see (batch, features) inputs and stay as they are.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from src.errors import UserError
from src.models.anatomy import Anatomy, Layer, anatomy
from src.sparse.activation import PackedReLU
from src.sparse.attention import NAME, AttentionSites, for_weights
from src.sparse.context import Context
from src.sparse.layer_norm import SparseLayerNorm
from src.sparse.linear import SparseLinear
from src.sparse.selectors import Selector
from src.sparse.site import Site
from src.surgery import find, replace

SITES = ("linear", "attention", "softmax", "activation", "layer_norm")
_SAVES_ITS_OUTPUT = (nn.Tanh, nn.Sigmoid, nn.Hardsigmoid, nn.LeakyReLU, nn.ELU, nn.ReLU6)


class Sparsified:
    """The sites of a network, for reports and for resuming.

    Args:
        net: the network, already changed.
        context: shared by its sites.
        sites: all of them, also those that stay dense, in the order of the forward pass.
        selector: what was asked.
    """

    def __init__(self, net: nn.Module, context: Context, sites: list[Site], selector: Selector) -> None:
        self.net = net
        self.context = context
        self.sites = sites
        self.selector = selector

    def report(self) -> list[dict[str, Any]]:
        """Return one row per site, of the last forward pass in training: see `Site.report`."""
        return [site.report() for site in self.sites]

    def fallbacks(self) -> list[Site]:
        """Return the sites that had to stay dense, beside those known to be pinned."""
        return [site for site in self.sites if site.fallback is not None and not site.pinned]

    def check(self) -> None:
        """Hold that no linear fell back.

        Raises:
            UserError: one did, in the last forward pass.
        """
        _refuse_fallbacks([site for site in self.fallbacks() if site.kind == "linear"])

    def kept(self) -> dict[str, Any]:
        """Return asked, achieved (share of the numbers of real tokens), unit, of (what) and the number of fallbacks."""
        active = [site for site in self.sites if not site.pinned and site.kind != "activation"]
        of = sum(site.of * site.members for site in active)
        linears = sum(site.members for site in active if site.kind == "linear")
        others = sorted({site.kind for site in active} - {"linear"})
        places = [f"the inputs of {linears} linears"] if linears else []
        achieved = sum(site.kept * site.members for site in active) / of if of else None
        return {
            "asked": self.selector.keep_frac,
            "achieved": 1.0 if self.selector.keep_frac == 1 else achieved,
            "unit": "saved activations",
            "of": f"{self.selector.unit}s of {' and '.join(places + others)}",
            "fallbacks": len(self.fallbacks()),
        }

    def never_selected(self) -> float | None:
        """Return the share of the linears' input columns never chosen so far; None where columns are not the unit."""
        seen = [site.seen for site in self.sites if site.kind == "linear" and site.seen is not None]
        if not seen:
            return None
        return 1 - sum(int(s.sum()) for s in seen) / sum(s.numel() for s in seen)

    def rng_state(self) -> dict[str, Any]:
        """Return what a resumed run needs to select as an uninterrupted one would, and to count columns on."""
        seen = {site.name: site.seen.cpu() for site in self.sites if site.seen is not None}
        return {"seed": self.context.seed, "step": self.context.step, "seen": seen}

    def set_rng_state(self, state: dict[str, Any]) -> None:
        """Continue from `rng_state()` of an earlier process."""
        self.context.seed, self.context.step = state["seed"], state["step"]
        for site in self.sites:
            site.seen = state["seen"].get(site.name)


def sparsify(
    net: nn.Module, sites: Sequence[str], selector: Selector, seed: int, allow_fallback: bool = False
) -> Sparsified:
    """Change `net` in place so that it saves a part of its activations; return the handle on what was changed.

    Freeze what is to be frozen before. Parameters stay the same objects under the same names.

    Args:
        net: a Transformers model (BERT, RoBERTa, DistilBERT), with or without a head.
        sites: any of linear, attention, softmax, activation, layer_norm.
        selector: what to keep at each site.
        seed: of the selection's own randomness.
        allow_fallback: whether a linear may stay dense without an error.

    Raises:
        UserError: an unknown site, an attention that never holds what a site would keep, or a linear that cannot
            save anything.
    """
    unknown = sorted(set(sites) - set(SITES))
    if unknown or not sites:
        raise UserError(f"sites={list(sites)}: choose among {', '.join(SITES)}")
    build = _Builder(net, anatomy(net), selector, Context(seed))
    for site in SITES:
        if site in sites:
            getattr(build, site)()
    if not allow_fallback:
        _refuse_fallbacks([site for site in build.sites if site.fallback and not site.pinned])
    build.context.attach(net)
    return Sparsified(net, build.context, build.sites, selector)


def _refuse_fallbacks(sites: list[Site]) -> None:
    if sites:
        names = ", ".join(f"{site.name} ({site.fallback})" for site in sites)
        raise UserError(
            f"these linears would save their whole input: {names}; change the setting or allow_fallback"
        )


class _Builder:
    """Puts the sites into a network, one kind after the other."""

    def __init__(self, net: nn.Module, parts: Anatomy, selector: Selector, context: Context) -> None:
        self.net = net
        self.parts = parts
        self.selector = selector
        self.context = context
        self.sites: list[Site] = []
        kind = getattr(net.config, "_attn_implementation", None) or "eager"
        self.attention_kind = "eager" if kind == NAME else kind

    def _site(self, name: str, kind: str, members: int = 1, bits: int = 0) -> Site:
        site = Site(name, kind, self.selector, self.context, len(self.sites), members, bits)
        self.sites.append(site)
        return site

    def linear(self) -> None:
        """The linears of each layer; query, key and value share one selection."""
        for layer in self.parts.layers:
            self._linear((layer.query, layer.key, layer.value))
            self._attention_output(layer)
            self._linear((layer.ffn_in,))
            self._ffn_out(layer)

    def _linear(self, paths: tuple[str, ...], bits: int = 0) -> Site:
        trained = sum(bool(find(self.net, path).weight.requires_grad) for path in paths)
        site = self._site(paths[0], "linear", trained, bits)
        for path in paths:
            dense = find(self.net, path)
            if not isinstance(dense, nn.Linear):
                raise UserError(f"{path} is a {type(dense).__name__}, not a linear layer")
            replace(self.net, path, SparseLinear.from_dense(dense, site))
        return site

    def _attention_output(self, layer: Layer) -> None:
        if self.attention_kind == "eager":
            self._linear((layer.attention_output,))
        else:
            self._site(layer.attention_output, "linear").pin(
                f"{self.attention_kind} attention saves this tensor itself"
            )

    def _ffn_out(self, layer: Layer) -> None:
        activation = find(self.net, layer.activation)
        if isinstance(activation, _SAVES_ITS_OUTPUT):
            site = self._site(layer.ffn_out, "linear")
            site.fallback = f"{type(activation).__name__} saves this tensor itself"
        elif isinstance(activation, nn.ReLU):
            frozen = not find(self.net, layer.ffn_out).weight.requires_grad
            site = self._linear((layer.ffn_out,), bits=1)
            self._pack(layer, activation, None if frozen else site)
        else:
            self._linear((layer.ffn_out,))

    def _pack(self, layer: Layer, relu: nn.ReLU, behind: Site | None) -> None:
        packed = PackedReLU(relu.inplace, behind, self._site(layer.activation, "activation"))
        replace(self.net, layer.activation, packed.train(relu.training))

    def activation(self) -> None:
        """One-bit ReLU; where the linears are sites it is there already."""
        for layer in self.parts.layers:
            activation = find(self.net, layer.activation)
            if isinstance(activation, PackedReLU):
                continue
            if not isinstance(activation, nn.ReLU):
                raise UserError(
                    f"site activation packs ReLU, {layer.activation} is {type(activation).__name__}: "
                    "set model.hidden_act=relu"
                )
            if find(self.net, layer.ffn_out).weight.requires_grad:
                raise UserError(
                    "site activation frees nothing while the linear behind saves its input: add site linear"
                )
            self._pack(layer, activation, None)

    def layer_norm(self) -> None:
        """The LayerNorms after attention and feed-forward block."""
        for path in (path for layer in self.parts.layers for path in layer.layer_norms):
            norm = find(self.net, path)
            if not isinstance(norm, nn.LayerNorm):
                raise UserError(f"{path} is a {type(norm).__name__}, not a LayerNorm")
            replace(self.net, path, SparseLayerNorm.from_dense(norm, self._site(path, "layer_norm")))

    def attention(self) -> None:
        """The products Q K^T and P V."""
        for layer, sites in self._attention_sites("attention"):
            sites.query = self._site(layer.query, "attention")
            sites.key = self._site(layer.key, "attention")
            sites.value = self._site(layer.value, "attention")
            sites.weights = self._weights(layer, "attention")

    def softmax(self) -> None:
        """Softmax and P V, fused."""
        for layer, sites in self._attention_sites("softmax"):
            if sites.weights is not None:  # the fused operation saves what P V would have
                self.sites.remove(sites.weights)
            sites.softmax, sites.weights = self._weights(layer, "softmax"), None

    def _weights(self, layer: Layer, kind: str) -> Site:
        selector = for_weights(self.selector)
        site = Site(layer.attention, kind, selector, self.context, len(self.sites), heads=layer.num_heads)
        self.sites.append(site)
        return site

    def _attention_sites(self, kind: str) -> Iterator[tuple[Layer, AttentionSites]]:
        config: Any = self.net.config
        if self.attention_kind != "eager":
            raise UserError(
                f"site {kind} needs the attention weights, which {self.attention_kind} attention never holds (it "
                "already saves less than eager attention): use model.attention=eager or leave the site out"
            )
        config._attn_implementation = NAME
        for layer in self.parts.layers:
            module: Any = find(self.net, layer.attention)
            if not hasattr(module, "sparse_sites"):
                module.sparse_sites = AttentionSites()
            yield layer, module.sparse_sites
