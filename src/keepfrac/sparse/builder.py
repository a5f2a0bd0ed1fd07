"""Creates the sites of a network, one kind after the other; `convert` describes each."""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import nn

from keepfrac.errors import UserError
from keepfrac.models.anatomy import Anatomy, check_attention_interface
from keepfrac.models.own_attention import ask
from keepfrac.sparse.context import Context
from keepfrac.sparse.layers.activation import PackedReLU
from keepfrac.sparse.layers.attention import NAME, AttentionSites, for_weights
from keepfrac.sparse.layers.dropout import PackedDropout
from keepfrac.sparse.layers.layer_norm import SparseLayerNorm
from keepfrac.sparse.layers.linear import SparseLinear
from keepfrac.sparse.layers.rms_norm import eps_of, sparse_rms_norm
from keepfrac.sparse.selection.selectors import Selector
from keepfrac.sparse.selection.site import Site
from keepfrac.tensors.change_class import change_class
from keepfrac.tensors.surgery import find

# The order in which they are built: each is a method below.
SITES = ("linear", "attention", "softmax", "activation", "layer_norm", "dropout")
_SAVES_ITS_OUTPUT = (nn.Tanh, nn.Sigmoid, nn.Hardsigmoid, nn.LeakyReLU, nn.ELU, nn.ReLU6)


class Builder:
    """Replaces modules of a network by ones that save less, and collects their sites.

    Sub-layers that a cut removed are skipped. A linear held as two factors, `q(p(x))`, is two linears.

    Args:
        net: the network, changed in place.
        parts: its anatomy.
        selector: what every site keeps.
        context: shared by the sites.
    """

    def __init__(self, net: nn.Module, parts: Anatomy, selector: Selector, context: Context) -> None:
        self.net = net
        self.parts = parts
        self.selector = selector
        self.context = context
        self.sites: list[Site] = []
        self.undo: list[Callable[[], None]] = []
        self.numbers = itertools.count()
        kind = getattr(net.config, "_attn_implementation", None) or "eager"
        self.attention_kind = "eager" if kind == NAME else kind

    def _site(self, name: str, kind: str, num_readers: int = 1, extra_bits: int = 0, heads: int = 0) -> Site:
        selector = for_weights(self.selector) if heads else self.selector
        site = Site(
            name, kind, selector, context=self.context, number=next(self.numbers), num_readers=num_readers,
            extra_bits=extra_bits, heads=heads,
        )  # fmt: skip
        self.sites.append(site)
        return site

    def _change(self, module: nn.Module, new: type[nn.Module], **attributes: Any) -> None:
        self.undo.append(change_class(module, new, **attributes).undo)

    def linear(self) -> None:
        """Converts the linears of each layer; query, key and value share one selection."""
        for layer in self.parts.layers:
            if layer.query and layer.key and layer.value and layer.attention_output:
                self._linear(tuple(dict.fromkeys((layer.query, layer.key, layer.value))))
                self._attention_output(layer.attention_output)
            if layer.ffn_in and layer.ffn_out and layer.activation:
                self._linear(tuple(dict.fromkeys(filter(None, (layer.ffn_in, layer.ffn_gate)))))
                self._ffn_out(layer.ffn_out, layer.activation)

    def _linear(self, paths: Sequence[str], extra_bits: int = 0) -> Site:
        """One site for linears that read the same tensor."""
        readers = [self._reader(path) for path in paths]
        trained = sum(self._trained(path) for path in paths)
        site = self._site(readers[0], "linear", num_readers=trained, extra_bits=extra_bits)
        for path, reader in zip(paths, readers, strict=True):
            self._change(self._dense(reader), SparseLinear, site=site)
            if reader != path:
                self._linear((f"{path}.q",))
        return site

    def _reader(self, path: str) -> str:
        """Path of the linear that reads the input: that at `path`, or the first of the two factors in it."""
        factors = [getattr(find(self.net, path), name, None) for name in ("p", "q")]
        return f"{path}.p" if all(isinstance(factor, nn.Linear) for factor in factors) else path

    def _dense(self, path: str) -> nn.Linear:
        linear = find(self.net, path)
        if type(linear) is not nn.Linear:
            raise UserError(
                f"{path} is a {type(linear).__name__}, not an nn.Linear: sparse backward is for families with plain"
                " linears, without low-rank updates"
            )
        return linear

    def _trained(self, path: str) -> bool:
        return self._dense(self._reader(path)).weight.requires_grad

    def _attention_output(self, path: str) -> None:
        if self.attention_kind == "eager":
            self._linear((path,))
        else:
            self._site(path, "linear").mark_saved_elsewhere(f"{self.attention_kind} attention saves this tensor itself")
            if self._reader(path) != path:
                self._linear((f"{path}.q",))

    def _ffn_out(self, path: str, activation_path: str) -> None:
        activation = find(self.net, activation_path)
        if isinstance(activation, _SAVES_ITS_OUTPUT):
            self._site(path, "linear").fallback = f"{type(activation).__name__} saves this tensor itself"
        elif isinstance(activation, nn.ReLU):
            trained = self._trained(path)
            site = self._linear((path,), extra_bits=1)
            self._pack(activation_path, activation, site if trained else None)
        else:
            self._linear((path,))

    def _pack(self, path: str, relu: nn.ReLU, behind: Site | None) -> None:
        self._change(relu, PackedReLU, behind=behind, site=self._site(path, "activation"))

    def activation(self) -> None:
        """Converts ReLU to save one bit; where the linears are sites it is converted already."""
        for layer in self.parts.layers:
            if not (layer.activation and layer.ffn_out):
                continue
            activation = find(self.net, layer.activation)
            if isinstance(activation, PackedReLU):
                continue
            if not isinstance(activation, nn.ReLU):
                name = type(activation).__name__
                raise UserError(f"site activation packs ReLU, {layer.activation} is {name}: set model.hidden_act=relu")
            if self._trained(layer.ffn_out):
                raise UserError("site activation frees nothing while the linear behind it saves all: add site linear")
            self._pack(layer.activation, activation, None)

    def dropout(self) -> None:
        """Converts the dropout of embeddings and layers; that of attention weights is the attention function's."""
        weights = {layer.probability_dropout for layer in self.parts.layers}
        inside = (self.parts.embeddings, *(layer.path for layer in self.parts.layers))
        for path, module in list(self.net.named_modules()):
            within = any(path.startswith(f"{part}.") for part in inside) and path not in weights
            if within and isinstance(module, nn.Dropout) and module.p > 0:
                self._change(module, PackedDropout, site=self._site(path, "dropout"))
        if not any(site.kind == "dropout" for site in self.sites):
            raise UserError("site dropout: this model has no dropout in its layers (model.dropout=0)")

    def layer_norm(self) -> None:
        """Converts the norms of attention and feed-forward block, LayerNorms or RMSNorms."""
        offset = self.parts.family.rms_norm
        for path in (path for layer in self.parts.layers for path in layer.layer_norms):
            norm: Any = find(self.net, path)
            if isinstance(norm, nn.Identity):
                continue
            stock: Any = type(norm)
            if offset is not None:
                own = {"site": self._site(path, "layer_norm"), "offset": offset, "eps_of_norm": eps_of(norm)}
                self._change(norm, sparse_rms_norm(stock), **own)
            elif isinstance(norm, nn.LayerNorm):
                self._change(norm, SparseLayerNorm, site=self._site(path, "layer_norm"))
            else:
                raise UserError(f"{path} is a {stock.__name__}, not a LayerNorm")

    def attention(self) -> None:
        """Converts the products Q K^T and P V."""
        for path, heads, sites in self._attention_sites("attention"):
            sites.query = self._site(f"{path} query", "attention")
            sites.key = self._site(f"{path} key", "attention")
            sites.value = self._site(f"{path} value", "attention")
            sites.weights = self._site(path, "attention", heads=heads)

    def softmax(self) -> None:
        """Converts softmax and P V, fused."""
        for path, heads, sites in self._attention_sites("softmax"):
            if sites.weights is not None:  # the fused operation saves what P V would have
                self.sites.remove(sites.weights)
            sites.weights, sites.softmax = None, self._site(path, "softmax", heads=heads)

    def _attention_sites(self, kind: str) -> Iterator[tuple[str, int, AttentionSites]]:
        """Path, number of heads and sites of each attention module, after making the model call our attention."""
        config: Any = self.net.config
        check_attention_interface(self.net, f"site {kind}", "leave the site out")
        if self.attention_kind != "eager":
            raise UserError(
                f"site {kind} needs the attention weights, which {self.attention_kind} attention never holds (it "
                "already saves less than eager attention): use model.attention=eager or leave the site out"
            )
        if config._attn_implementation != NAME:
            self.undo.append(lambda: setattr(config, "_attn_implementation", "eager"))
            config._attn_implementation = NAME
        self.undo += ask(self.net, [layer.attention for layer in self.parts.layers if layer.attention is not None])
        for layer in self.parts.layers:
            if layer.attention is not None:
                module: Any = find(self.net, layer.attention)
                if not hasattr(module, "sparse_sites"):
                    module.sparse_sites = AttentionSites()
                    self.undo.append(functools.partial(delattr, module, "sparse_sites"))
                yield layer.attention, layer.num_heads, module.sparse_sites
