"""Other forms of a cut model, for where its own class cannot go.

    stock_uniform   a plain Transformers class, smaller; only where the stock configuration can say the sizes
    stock_padded    a plain Transformers class, zeros where units were cut; same outputs, no gain in speed or size
    torch_export    a `torch.export` program (.pt2), any batch size and length
    onnx            an ONNX file, any batch size and length; needs onnx, onnxscript and onnxruntime
    sparse          one bit a weight and the values that are not zero: smaller, and exact (`models.packed`)
    sparse_int8     the same with 8-bit values, one scale a row: smaller still, and not exact
    peft            the updates of an adapted model as a folder of Hugging Face PEFT, S2 included

The default form is the cut model's own class (`models.pruned`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from keepfrac.adapters.peft_folder import write_peft
from keepfrac.adapters.surgery import adapted
from keepfrac.errors import UserError
from keepfrac.models.anatomy import family_of
from keepfrac.models.cut import counts_of, empty_like, encoder_layers, is_cut, shape_of
from keepfrac.models.dense_reference import stock_config
from keepfrac.models.matching import most_tokens
from keepfrac.models.packed import save_packed
from keepfrac.models.pruned import STOCK_OF
from keepfrac.prune.structure import ROLES

KINDS = ("stock_uniform", "stock_padded", "torch_export", "onnx", "sparse", "sparse_int8", "peft")
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def check_ready(kind: str) -> None:
    """Checks before a run that its export can be written at the end.

    Raises:
        UserError: an unknown form, or one whose packages are not installed.
    """
    if kind not in KINDS:
        raise UserError(f"export is {kind!r}: it must be none or one of {', '.join(KINDS)}")
    missing = [name for name in ONNX_PACKAGES if find_spec(name) is None] if kind == "onnx" else []
    if missing:
        raise UserError(f"export=onnx needs {', '.join(missing)}: pip install {' '.join(missing)}")


def export(net: PreTrainedModel, kind: str, folder: Path, example: Mapping[str, Tensor]) -> Path:
    """Writes another form of the model into `<folder>/<kind>`.

    Args:
        net: the delivered model, in eval mode.
        kind: one of KINDS.
        folder: where the forms of one model lie.
        example: inputs of one batch (`Task.inputs(batch)`), for the traced forms.

    Returns:
        The folder or file that was written.

    Raises:
        UserError: an unknown form, one that cannot hold this model, or one whose packages are missing.
    """
    writers: dict[str, Callable[[Path], object]] = {
        "stock_uniform": lambda path: stock_uniform(net).save_pretrained(path),
        "stock_padded": lambda path: stock_padded(net).save_pretrained(path),
        "torch_export": lambda path: torch_export(net, example, path / "model.pt2"),
        "onnx": lambda path: onnx(net, example, path / "model.onnx"),
        "sparse": lambda path: save_packed(net, path),
        "sparse_int8": lambda path: save_packed(net, path, int8=True),
        "peft": lambda path: write_peft(net, path, str(Path(folder).parent / "model")),
    }
    check_ready(kind)
    if kind != "peft" and adapted(net):
        raise UserError(f"export={kind}: this model holds its updates apart; merge them first, or use export=peft")
    target = Path(folder) / kind
    writers[kind](target)
    return target


def stock_uniform(net: PreTrainedModel) -> PreTrainedModel:
    """Returns the model as a plain Transformers class of the sizes that it has, if a stock configuration can say them.

    Stock encoders have hidden = heads * head_dim and one feed-forward width: all heads must be kept, the same number
    of neurons in each layer, nothing low-rank. Dropped layers are fine.

    Raises:
        UserError: it cannot; the message says why and what to use instead.
    """
    shape, counts = shape_of(net), counts_of(net)
    widths = sorted({int(c.neurons) for c in counts})
    reasons = []
    if any(c.heads != shape.num_heads for c in counts):
        found = [int(c.heads) for c in counts]
        reasons.append(f"its layers have {found} of {shape.num_heads} heads")
    if len(widths) > 1 or not widths[0]:
        reasons.append(f"its feed-forward widths are {', '.join(map(str, widths))}")
    if any(c.ranks for c in counts):
        reasons.append("some of its linears are low-rank")
    if reasons:
        raise UserError(
            f"a stock class cannot hold this model ({'; '.join(reasons)}): use export=stock_padded, or prune whole"
            " layers (method=layer_drop) or neurons alone (method=l0 method.families=[neurons] method.scope=layer)"
        )
    return _as_stock(net, widths[0])


def stock_padded(net: PreTrainedModel) -> PreTrainedModel:
    """Returns the model as a plain Transformers class of the dense sizes, with zeros where units were cut.

    Low-rank linears are multiplied out. Outputs are equal up to the order of summation. Kept units take the first
    places: which they were in the dense model is not recorded in a cut model.

    Raises:
        UserError: a decoder, or a head whose place in the dense model counts.
    """
    numbers = getattr(net.config, "head_numbers", None) or []
    if any(own != list(range(len(own))) for own in numbers):
        raise UserError(
            f"a stock class cannot hold this model: a {net.config.model_type} has a bias for the place of each head,"
            " and not the last ones alone were cut; its own folder loads everywhere"
        )
    return _as_stock(net, shape_of(net).num_neurons)


def torch_export(net: PreTrainedModel, example: Mapping[str, Tensor], path: Path) -> Path:
    """Writes a `torch.export` program from the model's inputs (by name) to its logits; batch and length are free."""
    net = _plain(net).eval()
    program = torch.export.export(
        _Logits(net), (), _two_rows(example), dynamic_shapes=_free(net, example), strict=False
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.export.save(program, path)
    return path


def onnx(net: PreTrainedModel, example: Mapping[str, Tensor], path: Path) -> Path:
    """Writes an ONNX file from the model's inputs (by name) to `logits`; batch and length are free.

    Raises:
        UserError: a package that this needs is not installed.
    """
    check_ready("onnx")
    net = _plain(net).eval()
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's remarks on its own operators
        torch.onnx.export(
            _Logits(net),
            (),
            str(path),
            kwargs=_two_rows(example),
            input_names=list(example),
            output_names=["logits"],
            dynamic_shapes=_free(net, example),
            dynamo=True,
        )
    return path


def _as_stock(net: PreTrainedModel, neurons: int) -> PreTrainedModel:
    if not is_cut(net):
        return net
    if shape_of(net).causal:
        raise UserError("the stock forms are for encoders: a cut decoder loads from its own folder alone")
    if getattr(net.config, "first_norm", False):
        raise UserError(
            "a stock class cannot hold this model: its first layer was cut away, and a stock class has no LayerNorm in"
            " front of the first attention; its own folder loads everywhere"
        )
    config = stock_config(net, **{family_of(net).neurons: neurons})
    stock = empty_like(net, STOCK_OF[type(net)], config)
    stock.load_state_dict(_padded(net, stock.state_dict()), strict=True)
    stock.tie_weights()
    return stock.train(net.training)


@torch.no_grad()
def _padded(net: PreTrainedModel, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The model's tensors in the names and shapes of `like`: factors multiplied out, zeros where nothing is left."""
    state, like, layers = dict(net.state_dict()), dict(like), encoder_layers(net)
    for layer in layers:
        for path in (getattr(layer, role) for role in ROLES):
            if path is not None and f"{path}.p.weight" in state:
                factor = state.pop(f"{path}.q.weight")
                product = factor.double() @ state.pop(f"{path}.p.weight").double()
                state[f"{path}.weight"] = product.to(factor.dtype)
                if f"{path}.q.bias" in state:
                    state[f"{path}.bias"] = state.pop(f"{path}.q.bias")
        for tensors in (state, like):
            layer.layout.split(tensors)
    full: dict[str, Tensor] = {}
    for name, target in like.items():
        full[name] = torch.zeros_like(target)
        if name in state:
            full[name][tuple(slice(0, size) for size in state[name].shape)] = state[name]
    for layer in layers:
        layer.layout.join(full)
    return full


class _Logits(nn.Module):
    """The model as a function of its inputs to its first output: a traced program needs a fixed signature."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        return self.net(**{name: value for name, value in inputs.items() if value is not None})[0]


def _plain(net: PreTrainedModel) -> PreTrainedModel:
    if any(module._forward_hooks or module._forward_pre_hooks for module in net.modules()):
        raise UserError("the model still has hooks (gates): cut it, or take them off, before it is exported")
    return net


def _two_rows(example: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """At least two rows, or the tracer takes the batch for a constant."""
    return {name: value if len(value) > 1 else torch.cat([value, value]) for name, value in example.items()}


def _free(net: PreTrainedModel, example: Mapping[str, Tensor]) -> dict[str, dict]:
    batch = torch.export.Dim("batch", min=1)
    length = torch.export.Dim("length", min=2, max=most_tokens(net))
    return {name: {0: batch, 1: length} for name in example}
