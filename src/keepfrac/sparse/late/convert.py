"""`convert`: a stock network's layers, made to train through the blocks of `late`, in place; and back."""

import logging
from dataclasses import asdict
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.models.bert.modeling_bert import BertPooler
from transformers.models.distilbert.modeling_distilbert import DistilBertForSequenceClassification
from transformers.models.roberta.modeling_roberta import RobertaClassificationHead, RobertaPooler
from transformers.models.roberta_prelayernorm.modeling_roberta_prelayernorm import (
    RobertaPreLayerNormClassificationHead,
    RobertaPreLayerNormPooler,
)

from keepfrac.errors import UserError
from keepfrac.sparse.kernels import prepare
from keepfrac.sparse.late.layer import CLASSES, LateLayer, LayerState
from keepfrac.sparse.late.noise import Noise
from keepfrac.sparse.late.padding import PaddingReader
from keepfrac.sparse.late.settings import Settings, Storing, Tally

log = logging.getLogger(__name__)

_FIRST_TOKEN_READERS = (
    BertPooler,
    RobertaPooler,
    RobertaClassificationHead,
    RobertaPreLayerNormPooler,
    RobertaPreLayerNormClassificationHead,
)


def _check_layer(path: str, layer: Any) -> None:
    """Raises UserError for a layer that the blocks would not reproduce."""
    CLASSES[type(layer)].parts(layer).check(path)
    if getattr(layer, "is_decoder", False):
        raise UserError("method late trains encoders, and this model is set up as a decoder (is_decoder=True)")


def _first_token(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Hands a pooler a copy of the one token that it reads: a view would keep the whole last hidden state alive."""
    return (args[0][:, :1].clone(), *args[1:])


def _copied(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The same for who is handed the one token as a view."""
    return (args[0].clone(), *args[1:])


def _free_last_hidden_state(net: nn.Module) -> list[RemovableHandle]:
    """Makes readers of the first token keep nothing but it; returns the hooks."""
    hooks = []
    for module in net.modules():
        if isinstance(module, _FIRST_TOKEN_READERS):
            hooks.append(module.register_forward_pre_hook(_first_token))
        if isinstance(module, DistilBertForSequenceClassification):
            hooks.append(module.pre_classifier.register_forward_pre_hook(_copied))
    return hooks


class Late:
    """The handle of a converted network.

    Args:
        layers: path -> converted layer, first to last.
        settings: how they store and choose.
        hooks: to be removed by `restore`.
    """

    def __init__(self, layers: dict[str, Any], settings: Settings, hooks: list[RemovableHandle]) -> None:
        self.layers, self.settings, self._hooks = layers, settings, hooks
        self._last: dict | None = None

    @property
    def runs_on(self) -> str:
        """What `kernels` comes to where the network is now: cpp, triton or torch."""
        device = next(next(iter(self.layers.values())).parameters()).device
        return prepare(self.settings.kernels, device)

    def report(self) -> list[dict]:
        """Returns one row per block: site, kind, asked, achieved, fallback, bytes_dense, bytes_kept, bytes_predicted.

        `achieved` is the share of real tokens that formed its weight gradients so far (None before the first backward
        pass); bytes are those of the last forward pass, parameters and the input that it shares with the block before
        aside; `bytes_dense` is what PyTorch stores for the same operations. What is kept depends on shapes alone, so
        it is what is predicted.
        """
        rows = []
        for path, layer in self.layers.items():
            rows.append(self._row(f"{path}.attention", layer.late.attention, layer.late.storing))
            rows.append(self._row(f"{path}.feed_forward", layer.late.feed_forward, layer.late.storing))
        return rows

    def _row(self, site: str, tally: Tally, storing: Storing) -> dict:
        return {
            "site": site,
            "kind": "late",
            "kernels": self.runs_on,
            "storing": asdict(storing),
            "asked": self.settings.keep_frac,
            "achieved": _share(tally),
            "fallback": None,
            "bytes_dense": tally.dense_bytes,
            "bytes_kept": tally.saved_bytes,
            "bytes_predicted": tally.saved_bytes,
        }

    def kept(self) -> dict:
        """Returns asked and achieved share of the rows of weight gradients, over all blocks and steps so far."""
        if self._last is not None:
            return self._last
        total = Tally()
        for layer in self.layers.values():
            for tally in (layer.late.attention, layer.late.feed_forward):
                total.real_rows += tally.real_rows
                total.used_rows += tally.used_rows
        return {
            "asked": self.settings.keep_frac,
            "achieved": _share(total),
            "unit": "rows of weight gradients",
            "of": f"real tokens, in {self._linears()} linears",
            "fallbacks": 0,
        }

    def _linears(self) -> int:
        return sum(len(list(layer.parts().linears())) for layer in self.layers.values())

    def storings(self) -> list[Storing]:
        """Returns how each layer stores, first to last."""
        return [layer.late.storing for layer in self.layers.values()]

    def store_by(self, storings: list[Storing]) -> None:
        """Makes each layer store so from its next forward pass on."""
        for layer, storing in zip(self.layers.values(), storings, strict=True):
            layer.late.storing = storing

    def rng_state(self) -> dict:
        """Returns what regenerates the masks and choices from here on: plain numbers."""
        noises = [layer.late.noise for layer in self.layers.values()]
        return {"seed": noises[0].seed, "calls": [noise.calls for noise in noises]}

    def set_rng_state(self, state: dict) -> None:
        """Goes on from a state of `rng_state`.

        Raises:
            UserError: it is of a network with another number of layers.
        """
        if len(state["calls"]) != len(self.layers):
            raise UserError(f"the random state is of {len(state['calls'])} layers, the network has {len(self.layers)}")
        for layer, calls in zip(self.layers.values(), state["calls"], strict=True):
            layer.late.noise.seed, layer.late.noise.calls = int(state["seed"]), int(calls)

    def restore(self) -> None:
        """Makes the layers stock again; the parameters stay as they are trained."""
        self._last = self.kept()
        stock = {late: plain for plain, late in CLASSES.items()}
        for layer in self.layers.values():
            layer.__class__ = stock[type(layer)]
            del layer.late
        for hook in self._hooks:
            hook.remove()
        self.layers, self._hooks = {}, []


def _share(tally: Tally) -> float | None:
    return tally.used_rows / tally.real_rows if tally.real_rows else None


def convert(
    net: nn.Module,
    keep_frac: float,
    rows: str,
    store: str,
    context: str,
    skip_zero_rows: bool,
    seed: int,
    kernels: str = "auto",
) -> Late:
    """Makes every layer of a BERT, RoBERTa or DistilBERT `net` train through the blocks of `late`, in place.

    The modules stay the same objects with the same parameters, state-dict keys and hooks; only the class of each layer
    changes. In evaluation mode the stock code runs. Modules inside a layer are not called in training: gates
    (`prune.attach`) are read from their hooks, any other hook is an error. Cut models, linears held as two factors or
    with low-rank updates, and RoBERTa's layers with the LayerNorm in front will do.

    Args:
        net: a network that holds layers of these families.
        keep_frac: see `Settings`, as for the next ones.
        rows: the rule of choice.
        store: the format of what is saved.
        context: whether the attention's context is.
        skip_zero_rows: leave out rows without a gradient.
        seed: of the dropout masks and of the sampled rows.
        kernels: who does the elementwise work.

    Raises:
        UserError: no such layer, one that is converted already, or one that the blocks would not reproduce; a setting
            out of its range; kernels that cannot be built here.
    """
    settings = Settings(keep_frac, rows, store, context, skip_zero_rows, kernels)
    if any(isinstance(module, LateLayer) for module in net.modules()):
        raise UserError("this network is converted to method late already: restore it first")
    layers: dict[str, Any] = {path: module for path, module in net.named_modules() if type(module) in CLASSES}
    if not layers:
        known = ", ".join(sorted(one.__name__ for one in CLASSES))
        raise UserError(f"method late finds no layer that it knows ({known}) in {type(net).__name__}")
    for path, layer in layers.items():
        _check_layer(path, layer)
    prepare(kernels, next(net.parameters()).device)
    reader = PaddingReader()
    for number, layer in enumerate(layers.values()):
        layer.__class__ = CLASSES[type(layer)]
        layer.late = LayerState(settings, settings.storing, Noise(seed, number), reader)
    hooks = _free_last_hidden_state(net)
    log.info("method late: %d layers, kernels=%s", len(layers), kernels)
    return Late(layers, settings, hooks)
