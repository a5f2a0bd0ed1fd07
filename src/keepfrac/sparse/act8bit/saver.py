"""`convert`: a network's layers, made to train through the blocks, in place; and back.

A network whose layers are no such blocks is made to store what autograd saves in it: see `any_network`.

`method=late` is this and nothing else. Under another method (`backward=late`) the layers are converted when that
method has prepared its model, and restored before it finishes. What the method attaches to the layers stays:

    low-rank updates    the frozen weights get no gradient, and only what the updates need is stored
    gates               heads, neurons, sub-layers, layers and ranks; read from their hooks at every step
    masks, cut layers   zeros and sizes stay as they are
    a teacher           logits and hidden states, not the attention scores, which no block forms

keep_frac is the share of the real tokens in each weight gradient, of gates on ranks too; the gradients of other gates
and of biases go over all.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from keepfrac.errors import UserError
from keepfrac.models.anatomy import anatomy
from keepfrac.models.families import Family
from keepfrac.settings import settings
from keepfrac.sparse.act8bit.any_linear import LateLinear
from keepfrac.sparse.act8bit.any_network import ConvertedLinears, convert_any, has_blocks
from keepfrac.sparse.act8bit.calls import PaddingReader, RowStats, SeedCounter
from keepfrac.sparse.act8bit.layers import LateLayer, LayerState, late_class
from keepfrac.sparse.act8bit.parts import Parts
from keepfrac.sparse.act8bit.settings import DEFAULTS, Act8bitSettings, StorageFormat
from keepfrac.sparse.kernels import prepare
from keepfrac.sparse.protocol import BackwardSaver, Handle

log = logging.getLogger(__name__)


class Converted(Handle):
    """The handle of a converted network.

    Args:
        layers: path -> converted layer, first to last.
        settings: how they store and choose.
        hooks: with a method `remove`, for `restore`.
    """

    def __init__(self, layers: dict[str, Any], settings: Act8bitSettings, hooks: Sequence[Any]) -> None:
        super().__init__([hook.remove for hook in hooks])
        self.layers, self.settings = layers, settings

    @property
    def runs_on(self) -> str:
        """What `kernels` comes to where the network is now: cpp, triton or torch."""
        device = next(next(iter(self.layers.values())).parameters()).device
        return prepare(self.settings.kernels, device)

    def report(self) -> list[dict[str, Any]]:
        """Returns one row per block: site, kind, asked, achieved, fallback, bytes_dense, bytes_kept, bytes_predicted.

        `achieved` is the share of real tokens that formed its weight gradients so far (None before the first backward
        pass); bytes are those of the last forward pass, parameters and the input that it shares with the block before
        aside; `bytes_dense` is what PyTorch stores for the same operations. What is kept depends on shapes alone, so
        it is what is predicted.
        """
        return [
            stats.row(f"{path}.{block}", self.runs_on, asdict(layer.late.storage), self.settings.keep_frac)
            for path, layer in self.layers.items()
            for block, stats in (("attention", layer.late.attention), ("feed_forward", layer.late.feed_forward))
        ]

    def kept(self) -> dict[str, Any]:
        """Returns asked and achieved share of the rows of weight gradients, over all blocks and steps so far."""
        stats = self._stats()
        total = RowStats(sum(one.real_rows for one in stats), sum(one.used_rows for one in stats))
        linears = sum(len(list(layer.parts().linears())) for layer in self.layers.values())
        return {
            "asked": self.settings.keep_frac,
            "achieved": total.share,
            "unit": "rows of weight gradients",
            "of": f"real tokens, in {linears} linears",
            "fallbacks": 0,
        }

    def storage(self) -> list[StorageFormat]:
        """Returns how each layer stores, first to last."""
        return [layer.late.storage for layer in self.layers.values()]

    def set_storage(self, formats: list[StorageFormat]) -> None:
        """Makes each layer store so from its next forward pass on."""
        for layer, one in zip(self.layers.values(), formats, strict=True):
            layer.late.storage = one

    def rng_state(self) -> dict[str, Any]:
        """Returns what regenerates the masks and choices from here on: plain numbers."""
        seeds = [layer.late.seeds for layer in self.layers.values()]
        return {"seed": seeds[0].seed, "calls": [one.calls for one in seeds]}

    def set_rng_state(self, state: dict[str, Any]) -> None:
        """Goes on from a state of `rng_state`.

        Raises:
            UserError: it is of a network with another number of layers.
        """
        if len(state["calls"]) != len(self.layers):
            raise UserError(f"the random state is of {len(state['calls'])} layers, the network has {len(self.layers)}")
        for layer, calls in zip(self.layers.values(), state["calls"], strict=True):
            layer.late.seeds.seed, layer.late.seeds.calls = int(state["seed"]), int(calls)

    def state(self) -> dict[str, Any]:
        """Returns the random state, the formats, and the rows counted so far, as plain values."""
        rows = [(one.real_rows, one.used_rows) for one in self._stats()]
        return {"rng": self.rng_state(), "storage": [asdict(one) for one in self.storage()], "rows": rows}

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes on from `state()` of an earlier process."""
        self.set_rng_state(state["rng"])
        self.set_storage([StorageFormat(**one) for one in state["storage"]])
        for one, counted in zip(self._stats(), state["rows"], strict=True):
            one.real_rows, one.used_rows = counted

    def _stats(self) -> list[RowStats]:
        return [one for layer in self.layers.values() for one in (layer.late.attention, layer.late.feed_forward)]

    def restore(self) -> None:
        """Restores the stock layers; the parameters stay as they are trained."""
        for layer in self.layers.values():
            layer.__class__ = layer.stock
            del layer.late
        self.layers = {}
        super().restore()


def convert(net: nn.Module, own: Act8bitSettings | float = DEFAULTS["keep_frac"]) -> Converted | ConvertedLinears:
    """Makes every layer of `net` train through the blocks of `late`, in place; its linears, where it has no blocks.

    The modules stay the same objects with the same parameters, state-dict keys and hooks; only the class of each layer
    changes. In evaluation mode the stock code runs. Modules inside a layer are not called in training: gates
    (`prune.attach`) are read from their hooks, any other hook is an error. Cut models, linears held as two factors or
    with low-rank updates, and layers with the LayerNorm in front will do.

    Args:
        net: a network. It goes through the blocks where `models.families` has a row for it whose attention is
            softmax(q k' scale + mask) v; else see `any_network`.
        own: how its blocks store and choose; a number: keep_frac, and `DEFAULTS` for the rest.

    Raises:
        UserError: a share that is not in (0, 1], a network that is converted already, with a layer that its family's
            blocks would not reproduce, or without linears; kernels that cannot be built here.
    """
    if not isinstance(own, Act8bitSettings):
        own = Act8bit.Settings.of({**DEFAULTS, "keep_frac": own})
    if any(isinstance(module, (LateLayer, LateLinear)) for module in net.modules()):
        raise UserError("this network is converted to method late already: restore it first")
    if not has_blocks(net):
        return convert_any(net, own, _without_cache(net))
    parts = anatomy(net)
    family = parts.family
    layers: dict[str, Any] = {one.path: net.get_submodule(one.path) for one in parts.layers}
    for path, layer in layers.items():
        Parts.of(layer, family).check(path)
        if getattr(layer, "is_decoder", False):
            raise UserError("method late trains encoders, and this model is set up as a decoder (is_decoder=True)")
    prepare(own.kernels, next(net.parameters()).device)
    reader = PaddingReader()
    for number, layer in enumerate(layers.values()):
        layer.__class__ = late_class(layer.__class__)
        seeds = SeedCounter(own.selection_seed, number)
        layer.late = LayerState(own, own.storage, seeds=seeds, padding=reader, family=family)
    log.info("method late: %d layers, kernels=%s", len(layers), own.kernels)
    return Converted(layers, own, [*_free_last_hidden_state(net, family), *_without_cache(net)])


class _Setting:
    """A setting of a configuration that `remove` puts back."""

    def __init__(self, config: Any, name: str, value: Any) -> None:
        self.config, self.name, self.before = config, name, getattr(config, name)
        setattr(config, name, value)

    def remove(self) -> None:
        """Puts it back."""
        setattr(self.config, self.name, self.before)


def _without_cache(net: Any) -> list[_Setting]:
    """Makes a decoder that trains collect no keys and values, which it would hold, and no block gives."""
    config = getattr(net, "config", None)
    return [_Setting(config, "use_cache", False)] if getattr(config, "use_cache", False) else []


def _first_token(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Hands a pooler a copy of the one token that it reads: a view would keep the whole last hidden state alive."""
    return (args[0][:, :1].clone(), *args[1:])


def _copied(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The same for who is handed the one token as a view."""
    return (args[0].clone(), *args[1:])


def _free_last_hidden_state(net: nn.Module, family: Family) -> list[RemovableHandle]:
    """Makes readers of the first token keep nothing but it; returns the hooks."""
    readers = [module for module in net.modules() if type(module).__name__ in family.first_token_readers]
    views = [getattr(net, name) for name in family.first_token_views if hasattr(net, name)]
    return [
        *(module.register_forward_pre_hook(_first_token) for module in readers),
        *(module.register_forward_pre_hook(_copied) for module in views),
    ]


class Act8bit(BackwardSaver):
    """`late`: activations in 8 bits, and the rows of each weight gradient chosen in the backward pass."""

    @settings
    class Settings(Act8bitSettings):
        pass

    draws_masks = True
    forms_attention_scores = False

    def convert(self, net: nn.Module) -> Converted | ConvertedLinears:
        return convert(net, self.settings)
