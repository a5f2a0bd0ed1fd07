"""`convert`: a stock network's layers, made to train through the blocks of `late`, in place; and back."""

import logging
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.activations import ACT2FN
from transformers.models.bert.modeling_bert import BertPooler
from transformers.models.roberta.modeling_roberta import RobertaClassificationHead, RobertaPooler

from src.errors import UserError
from src.sparse.kernels import prepare
from src.sparse.late.layer import CLASSES, LateLayer, LayerState
from src.sparse.late.noise import Noise
from src.sparse.late.padding import PaddingReader
from src.sparse.late.settings import Settings, Tally

log = logging.getLogger(__name__)

_LINEARS = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)
_DROPOUTS = ("attention.self.dropout", "attention.output.dropout", "output.dropout")
_FIRST_TOKEN_READERS = (BertPooler, RobertaPooler, RobertaClassificationHead)


def _activation(layer: Any) -> str:
    """Returns the name of the layer's activation function, as in ACT2FN; raises UserError where it has none."""
    name = layer.attention.self.config.hidden_act
    function = layer.intermediate.intermediate_act_fn
    if not isinstance(name, str) or type(ACT2FN[name]) is not type(function):
        raise UserError(f"method late knows the stock activation functions; this layer has {function!r}")
    return name


def _check_layer(path: str, layer: nn.Module) -> None:
    """Raises UserError for a layer that the blocks would not reproduce."""
    for name in _LINEARS:
        linear = layer.get_submodule(name)
        if type(linear) is not nn.Linear or linear.bias is None:
            raise UserError(f"method late needs plain linear layers with a bias; {path}.{name} is {linear!r}")
    for name in _DROPOUTS:
        dropout = layer.get_submodule(name)
        if type(dropout) is not nn.Dropout or not 0 <= dropout.p < 1:
            raise UserError(f"method late needs dropout in [0, 1); {path}.{name} is {dropout!r}")
    if getattr(layer, "is_decoder", False):
        raise UserError(
            "method late trains encoders, and this model is set up as a decoder (is_decoder=True)"
        )


def _first_token(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Hands a pooler a copy of the one token that it reads: a view would keep the whole last hidden state alive."""
    return (args[0][:, :1].clone(), *args[1:])


class Late:
    """The handle of a converted network.

    Args:
        layers: path -> converted layer, first to last.
        settings: how they store and choose.
        runs_on: "cpp" or "torch", what `kernels` came to.
        hooks: to be removed by `restore`.
    """

    def __init__(
        self, layers: dict[str, Any], settings: Settings, runs_on: str, hooks: list[RemovableHandle]
    ) -> None:
        self.layers, self.settings, self.runs_on, self._hooks = layers, settings, runs_on, hooks

    def report(self) -> list[dict]:
        """Returns one row per block: site, kind, asked, achieved, fallback, bytes_dense, bytes_kept.

        `achieved` is the share of real tokens that formed its weight gradients so far (None before the first backward
        pass); bytes are those of the last forward pass, parameters and the input that it shares with the block before
        aside; `bytes_dense` is what PyTorch stores for the same operations.
        """
        rows = []
        for path, layer in self.layers.items():
            rows.append(self._row(f"{path}.attention", layer.late.attention))
            rows.append(self._row(f"{path}.feed_forward", layer.late.feed_forward))
        return rows

    def _row(self, site: str, tally: Tally) -> dict:
        return {
            "site": site,
            "kind": f"late/{self.runs_on}",
            "asked": self.settings.keep_frac,
            "achieved": _share(tally),
            "fallback": None,
            "bytes_dense": tally.dense_bytes,
            "bytes_kept": tally.saved_bytes,
        }

    def kept(self) -> dict:
        """Returns asked and achieved share of the rows of weight gradients, over all blocks and steps so far."""
        total = Tally()
        for layer in self.layers.values():
            for tally in (layer.late.attention, layer.late.feed_forward):
                total.real_rows += tally.real_rows
                total.used_rows += tally.used_rows
        return {
            "asked": self.settings.keep_frac,
            "achieved": _share(total),
            "unit": "rows of weight gradients",
            "of": f"real tokens, in {len(self.layers) * len(_LINEARS)} linears",
            "fallbacks": 0,
        }

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
            raise UserError(
                f"the random state is of {len(state['calls'])} layers, the network has {len(self.layers)}"
            )
        for layer, calls in zip(self.layers.values(), state["calls"], strict=True):
            layer.late.noise.seed, layer.late.noise.calls = int(state["seed"]), int(calls)

    def restore(self) -> None:
        """Makes the layers stock again; the parameters stay as they are trained."""
        stock = {late: plain for plain, late in CLASSES.items()}
        for layer in self.layers.values():
            layer.__class__ = stock[type(layer)]
            del layer.late, layer.late_activation
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
    """Makes every BERT or RoBERTa layer of `net` train through the blocks of `late`, in place.

    The modules stay the same objects with the same parameters, state-dict keys and hooks; only the class of each layer
    changes. In evaluation mode the stock code runs. Hooks on modules inside a layer do not fire in training.

    Args:
        net: a network that holds `BertLayer` or `RobertaLayer` modules.
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
    activations = [_activation(layer) for layer in layers.values()]
    runs_on = prepare(kernels) if next(net.parameters()).device.type == "cpu" else "torch"
    reader = PaddingReader()
    for number, (layer, activation) in enumerate(zip(layers.values(), activations, strict=True)):
        layer.__class__ = CLASSES[type(layer)]
        layer.late, layer.late_activation = LayerState(settings, Noise(seed, number), reader), activation
    hooks = [
        module.register_forward_pre_hook(_first_token)
        for module in net.modules()
        if isinstance(module, _FIRST_TOKEN_READERS)
    ]
    log.info("method late: %d layers, kernels in %s", len(layers), runs_on)
    return Late(layers, settings, runs_on, hooks)
