"""The one ruler: every method's size and cost are measured here, none reports its own.

`python -m src.measure FOLDER` measures the delivered model of a run, or any Hugging Face folder.
"""

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from keepfrac.models.anatomy import Anatomy
from keepfrac.prune import masks
from keepfrac.tensors.clock import interleaved_seconds
from keepfrac.tensors.saved import OwnTensors

_ATEN = torch.ops.aten
# The counter does not know the CPU's fused attention and would count none of its work.
FLOPS_OF_CPU_ATTENTION = {
    _ATEN._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *args, out_shape=None, **kwargs: sdpa_flop_count(
        q, k, v
    ),
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: lambda grad, q, k, v, *args, out_shape=None, **kwargs: (
        sdpa_backward_flop_count(grad, q, k, v)
    ),
}


@contextmanager
def saved_storages(net: nn.Module) -> Iterator[dict[int, int]]:
    """Collects bytes by storage of what autograd saves inside the block.

    Each storage counts once, however many operations save it. Parameters and buffers of `net`, and the casts of
    parameters that autocast makes, are not activations and do not count.
    """
    own, storages = OwnTensors(net), dict[int, int]()

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if not own.has(tensor):
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield storages


def saved_bytes(net: nn.Module, step: Callable[[], Tensor]) -> int:
    """Returns the bytes that autograd holds between the forward and the backward pass of `step()`, a scalar loss."""
    with saved_storages(net) as storages:
        loss = step()
    loss.backward()
    net.zero_grad(set_to_none=True)
    return sum(storages.values())


def step_seconds(steps: dict[str, Callable[[], Tensor]], times: int, device: torch.device | str) -> dict[str, float]:
    """Returns the median seconds of forward and backward of each step, interleaved, after one warm-up each."""
    whole = {name: lambda step=step: step().backward() for name, step in steps.items()}
    return {name: statistics.median(found) for name, found in interleaved_seconds(whole, times, 1, device).items()}


def autocast(device: torch.device, precision: str):
    """Returns the context in which the Trainer runs a step at this precision."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16-mixed" else nullcontext()


def cost(
    net: nn.Module, dense: nn.Module, step: Callable[[], Tensor], dense_step: Callable[[], Tensor], *, times: int
) -> dict:
    """Measures one training step of a method against the same step of the dense model, both in train mode.

    Args:
        net: the method's model.
        dense: the model before the method changed it.
        step: a step of the method, up to its loss.
        dense_step: the same of the dense model.
        times: interleaved repetitions per side, >= 1.

    Returns:
        saved_bytes and step_seconds of both, and the peak bytes on a GPU (None elsewhere).
    """
    device = next(net.parameters()).device
    on_gpu = device.type == "cuda"
    net.train(), dense.train()
    saved, saved_dense = saved_bytes(net, step), saved_bytes(dense, dense_step)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
        saved_bytes(net, step)
    peak = torch.cuda.max_memory_allocated(device) if on_gpu else None
    seconds = step_seconds({"dense": dense_step, "own": step}, times, device)
    for model in (net, dense):
        model.zero_grad(set_to_none=True)
    return {
        "saved_bytes": saved,
        "saved_bytes_dense": saved_dense,
        "peak_bytes": peak,
        "step_seconds": seconds["own"],
        "step_seconds_dense": seconds["dense"],
    }


def fidelity(
    net: nn.Module, twin: nn.Module, body: Anatomy, step: Callable[[], Tensor], twin_step: Callable[[], Tensor]
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Compares the gradients of a method with the dense ones: same weights, same batch, same dropout.

    Args:
        net: the method's model.
        twin: the dense model; it takes over the weights of `net`.
        body: of both; the gradient of the output of its `embeddings` is dX.
        step: a step of the method, up to its loss.
        twin_step: the same of the dense model.

    Returns:
        (figures, by_weight): cosine_dw, relative_error_dw, norm_ratio_dw over all matrices, relative_error_dx; and
        cosine, relative error and ratio of norms by the name of each matrix.
    """
    twin.load_state_dict(net.state_dict())
    grads, below = {}, {}
    for name, model, one_step in (("method", net, step), ("dense", twin, twin_step)):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            grads[name], below[name] = _gradients(model, body, one_step)
    pairs = {key: (grads["method"][key], dense) for key, dense in grads["dense"].items() if key in grads["method"]}
    by_weight = {key: _compare(*pair) for key, pair in pairs.items()}
    together = _compare(*(torch.cat([pair[side] for pair in pairs.values()]) for side in (0, 1)))
    figures = {f"{key}_dw": value for key, value in together.items()}
    figures["relative_error_dx"] = _compare(below["method"], below["dense"])["relative_error"]
    return figures, by_weight


def _gradients(net: nn.Module, body: Anatomy, step: Callable[[], Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """Returns the gradients of the layers' matrices and of the output of the embeddings, flat, in float64."""
    caught: list[Tensor] = []

    def catch(module: nn.Module, inputs, output: Tensor) -> None:
        output.register_hook(lambda grad: caught.append(grad.detach()))

    handle = net.get_submodule(body.embeddings).register_forward_hook(catch)
    net.zero_grad(set_to_none=True)
    try:
        step().backward()
    finally:
        handle.remove()
    named = {name: parameter.grad for name, parameter in net.named_parameters()}
    inside = tuple(f"{layer.path}." for layer in body.layers)
    matrices = {
        n: g.flatten().double() for n, g in named.items() if g is not None and g.ndim == 2 and n.startswith(inside)
    }
    net.zero_grad(set_to_none=True)
    return matrices, caught[0].flatten().double()


def _compare(one: Tensor, dense: Tensor) -> dict[str, float]:
    norm = dense.norm().clamp_min(1e-30)
    cosine = (one @ dense) / (one.norm().clamp_min(1e-30) * norm)
    error = (one - dense).norm() / norm
    return {"cosine": cosine.item(), "relative_error": error.item(), "norm_ratio": (one.norm() / norm).item()}


@torch.no_grad()
def forward_seconds(nets: dict[str, nn.Module], times: int, length: int = 128) -> dict[str, float]:
    """Returns the median seconds of one forward pass of a single sentence of `length` tokens, interleaved, in fp32."""
    device = next(next(iter(nets.values())).parameters()).device
    ids = torch.ones(1, length, dtype=torch.long, device=device)
    forwards = {name: _forward(net, ids) for name, net in nets.items()}
    return {name: statistics.median(found) for name, found in interleaved_seconds(forwards, times, 1, device).items()}


def _forward(net: nn.Module, ids: Tensor) -> Callable[[], object]:
    mask = torch.ones_like(ids)
    net.eval()
    return lambda: net(input_ids=ids, attention_mask=mask)


def parameters(net: nn.Module) -> int:
    """Returns the number of parameters, tied ones once."""
    return sum(parameter.numel() for parameter in net.parameters())


def nonzeros(net: nn.Module) -> int:
    """Returns the number of parameters that are not zero."""
    return sum(int(torch.count_nonzero(parameter)) for parameter in net.parameters())


@torch.no_grad()
def flops(net: nn.Module, length: int) -> FlopCounterMode:
    """Returns the counts of one forward pass of one sentence of `length` tokens, attention included."""
    was_training = net.training
    net.eval()
    ids = torch.ones(1, length, dtype=torch.long, device=next(net.parameters()).device)
    learning = [parameter for parameter in net.parameters() if parameter.requires_grad]
    try:
        with FlopCounterMode(display=False, custom_mapping=FLOPS_OF_CPU_ATTENTION) as counter:
            for parameter in learning:  # one that is handed to a module, as DeBERTa does, would stop the counter
                parameter.requires_grad_(False)
            net(input_ids=ids, attention_mask=torch.ones_like(ids))
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
        net.train(was_training)
    return counter


def macs(net: nn.Module, length: int = 128) -> int:
    """Returns the multiply-accumulates of one forward pass of one sentence of `length` tokens, attention included."""
    return flops(net, length).get_total_flops() // 2


def bytes_on_disk(folder: Path) -> int:
    """Returns the bytes of the weight files in a model's folder, without the masks that training goes on with."""
    paths = [path for pattern in ("*.safetensors", "*.bin") for path in Path(folder).glob(pattern)]
    return sum(path.stat().st_size for path in paths if path.name != masks.FILE)


def size(net: nn.Module, folder: Path) -> dict:
    """Returns params, nonzeros, bytes_on_disk and macs (one sentence of 128 tokens) of a delivered model."""
    return {
        "params": parameters(net),
        "nonzeros": nonzeros(net),
        "bytes_on_disk": bytes_on_disk(folder),
        "macs": macs(net),
    }
