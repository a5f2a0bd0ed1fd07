"""Cutting a model by a structure: gates folded into the weights, units sliced away, exactly.

The cut model is a new one (classes of `models.pruned`), its tensors are slices of the old state dict: nothing is
re-initialised, and whatever sat on the old model (hooks, sparse-backward modules) stays behind.

    heads      rows of query, key, value; columns of the attention output, times the gate
    neurons    rows of the first feed-forward linear; columns of the second, times the gate
    sub-layer  weight and bias of its last linear times the gate; without units it is removed, its layer norm stays
    ranks      rows of P, columns of Q, times the gate; at or above break-even merged into one dense linear
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from keepfrac.errors import UserError
from keepfrac.models.anatomy import Layer, anatomy, base_path, family_of
from keepfrac.models.families import PRUNED
from keepfrac.models.pruned import PRUNED_OF, SIZES, STOCK_OF
from keepfrac.models.slicing import slice_tensors
from keepfrac.prune.attach import FixedGates, read_counts
from keepfrac.prune.structure import ROLES, LayerCounts, LayerStructure, ModelShape, Structure

NOT_SETTINGS = ("model_type", "architectures", "auto_map", "transformers_version")


def encoder_layers(net: PreTrainedModel) -> list[Layer]:
    """Returns the layers of a dense, masked, factorised or cut model of a family that can be cut.

    Raises:
        UserError: the family is not known, or cannot be cut.
    """
    parts = anatomy(net)
    if parts.family.removed is None:
        known = sorted(config.model_type for config in PRUNED_OF if hasattr(config, "model_type"))
        raise UserError(
            f"a {parts.model_type} model cannot be cut or factorised: "
            + (parts.family.why_not_cut or f"known are {', '.join(known)}")
        )
    return list(parts.layers)


def is_cut(net: PreTrainedModel) -> bool:
    """Returns whether a model is what `cut` makes."""
    return net.config.model_type.startswith(PRUNED)


def shape_of(net: PreTrainedModel) -> ModelShape:
    """Returns the shape of the dense original, which a cut model's configuration still holds."""
    family, config = family_of(net), net.config
    heads, hidden = config.num_attention_heads, config.hidden_size
    units = getattr(config, "num_key_value_heads", None) or heads
    return ModelShape(
        num_layers=getattr(config, "original_layers", None) or getattr(config, family.depth),
        hidden=hidden,
        num_heads=units,
        head_dim=getattr(config, "head_dim", None) or hidden // heads,
        num_neurons=getattr(config, family.neurons) or 4 * hidden,
        group=heads // units,
        gated=family.ffn_gate is not None,
        causal=family.causal,
    )


def counts_of(net: PreTrainedModel) -> list[LayerCounts]:
    """Returns the heads, neurons and ranks that the model has now."""
    return read_counts(net, encoder_layers(net))


@torch.no_grad()
def cut(
    net: PreTrainedModel, structure: Structure, gates: FixedGates | None = None, merge: bool = True
) -> PreTrainedModel:
    """Returns the model that keeps only the structure's units.

    Args:
        net: dense, masked, factorised or already cut; not changed. The structure indexes its present units.
        structure: what stays.
        gates: values to fold into the kept weights (`Gates.fixed()`), None = all 1.
        merge: whether two factors at or above break-even become one dense linear, which is smaller and faster.

    Returns:
        A model of `models.pruned` with the same head, dtype, device and mode; its output equals that of `net` under
        these gates and this structure, up to the rounding of the multiplication.

    Raises:
        UserError: the structure does not fit the model, drops all layers, or the model's class cannot be cut.
    """
    layers = encoder_layers(net)
    structure.check(read_counts(net, layers))
    if all(layer.dropped for layer in structure.layers):
        raise UserError("the structure drops every layer: at least one must stay")
    state = slice_tensors(net.state_dict(), layers, structure, gates, merge)
    smaller = empty_like(net, _class_of(net), _config_of(net, state, layers, structure))
    smaller.load_state_dict(_renumber(state, layers, structure), strict=True)
    smaller.tie_weights()
    return smaller.train(net.training)


@torch.no_grad()
def largest_difference(
    before: Callable[[object], Tensor], after: Callable[[object], Tensor], batches: Iterable, tolerance: float
) -> float:
    """Returns the largest absolute difference between two functions of a batch, held under a tolerance.

    Args:
        before: a batch -> logits, of the masked model in eval mode.
        after: the same of the cut model.
        batches: real batches, at least one.
        tolerance: largest difference allowed; 1e-4 for fp32.

    Raises:
        ValueError: the difference is larger, or not a number; or there was no batch.
    """
    worst = [(before(batch).float() - after(batch).float()).abs().max().item() for batch in batches]
    if not worst or not max(worst) <= tolerance:
        found = f"differ by {max(worst):.3g}, above {tolerance:g}" if worst else "were not compared: no batch"
        raise ValueError(f"the logits of the cut model and the masked model {found}")
    return max(worst)


def settings_for(config_class: type, config: PreTrainedConfig) -> dict:
    """Returns the settings of a configuration that one of another class of its family has too."""
    unknown = {name for name in SIZES if not hasattr(config_class, name)}
    return {name: value for name, value in config.to_dict().items() if name not in {*unknown, *NOT_SETTINGS}}


def depths(net: PreTrainedModel, layers: int) -> dict[str, int]:
    """Returns what the configuration of a model like this one, of so many layers, says of their number."""
    parts = anatomy(net)
    runs = parts.family.runs
    return {parts.family.depth: layers} | ({runs: layers * parts.repeats} if runs else {})


def empty_like(net: PreTrainedModel, model_class: Callable, config: PreTrainedConfig) -> PreTrainedModel:
    """Returns a model of another class with random weights: device, dtype, pooler or none as `net` has it.

    The run's random numbers are left alone.
    """
    pooler = {"add_pooling_layer": False} if getattr(net, "pooler", True) is None else {}
    parameter = next(net.parameters())
    with torch.random.fork_rng(devices=[]):
        return model_class(config, **pooler).to(parameter.device, parameter.dtype)


def _class_of(net: PreTrainedModel) -> type:
    stock = STOCK_OF.get(type(net), type(net))
    if stock not in PRUNED_OF:
        known = ", ".join(sorted(cls.__name__ for cls in PRUNED_OF if not hasattr(cls, "model_type")))
        raise UserError(f"a {type(net).__name__} cannot be cut: known are {known}")
    return PRUNED_OF[stock]


def _config_of(net: PreTrainedModel, state: dict[str, Tensor], layers: Sequence[Layer], structure: Structure):
    stock = STOCK_OF.get(type(net.config), type(net.config))
    kept = [(i, s) for i, s in enumerate(structure.layers) if not s.dropped]
    if len(kept) < len(layers) and getattr(net.config, "scale_attn_by_inverse_layer_idx", False):
        raise UserError("a model whose attention is scaled by its layer's number cannot lose whole layers")
    shape, low_rank = shape_of(net), _ranks_of(net, state, layers, [i for i, _ in kept])
    if low_rank and (shape.causal or shape.gated):
        raise UserError(f"a {net.config.model_type} model cannot be cut with linears held as two factors: merge them")
    sizes = {
        **depths(net, len(kept)),
        "head_dim": shape.head_dim,
        "layer_heads": [len(s.heads) for _, s in kept],
        "layer_ffn": [len(s.neurons) for _, s in kept],
        "low_rank": low_rank or None,
        "original_layers": shape.num_layers,
        **_layer_lists(net, [i for i, _ in kept]),
        **({"first_norm": _first_norm(net, layers[kept[0][0]])} if family_of(net).bare_first else {}),
        **({"head_numbers": [_numbers_of(net, i, s) for i, s in kept]} if family_of(net).head_bias else {}),
    }
    config = PRUNED_OF[stock](**settings_for(PRUNED_OF[stock], net.config) | sizes)
    config._attn_implementation = _attention_of(net)
    return config


def _first_norm(net: PreTrainedModel, first: Layer) -> bool:
    return not isinstance(net.get_submodule(first.layer_norms[0]), nn.Identity)


def _numbers_of(net: PreTrainedModel, layer: int, kept: LayerStructure) -> list[int]:
    """The heads that a layer keeps, by their places in the dense original."""
    before = getattr(net.config, "head_numbers", None)
    return [head if before is None else before[layer][head] for head in kept.heads]


def _layer_lists(net: PreTrainedModel, kept: Sequence[int]) -> dict[str, list]:
    """What the configuration says of each layer, of those that stay."""
    found = {name: getattr(net.config, name, None) for name in family_of(net).layer_lists}
    return {name: [values[i] for i in kept] for name, values in found.items() if values is not None}


def _attention_of(net: PreTrainedModel) -> str:
    """The model's attention where it is a stock one: a delivered model needs none of ours."""
    present = net.config._attn_implementation
    return present if present in ("eager", "sdpa", "flash_attention_2") else "sdpa"


def _ranks_of(
    net: PreTrainedModel, state: dict[str, Tensor], layers: Sequence[Layer], kept: list[int]
) -> dict[str, int]:
    """Low-rank linears by their name inside the encoder, layers renumbered."""
    base, found = f"{base_path(net)}.", {}
    for new, old in enumerate(kept):
        for role in ROLES:
            path = getattr(layers[old], role)
            if path is not None and f"{path}.p.weight" in state:
                name = _numbered(path, layers[old].path, new).removeprefix(base)
                found[name] = len(state[f"{path}.p.weight"])
    return found


def _renumber(state: dict[str, Tensor], layers: Sequence[Layer], structure: Structure) -> dict[str, Tensor]:
    """Names for the model in which dropped layers are gone."""
    new_of: dict[str, tuple[int, int]] = {}
    for old, (layer, kept) in enumerate(zip(layers, structure.layers, strict=True)):
        if not kept.dropped:
            new_of[layer.path] = (len(new_of), old)
    renamed = dict(state)
    for path, (new, old) in new_of.items():
        if new != old:
            for name in [name for name in state if name.startswith(f"{path}.")]:
                renamed[_numbered(name, path, new)] = renamed.pop(name)
    return renamed


def _numbered(name: str, path: str, number: int) -> str:
    stem = path.rpartition(".")[0]
    return f"{stem}.{number}{name[len(path) :]}"
