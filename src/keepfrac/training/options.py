"""Options of the loop, for every method; each is off unless it is asked for.

    fgm          adversarial training: for each batch the gradient g of the word embeddings gives the attack
                 r = eps g / ||g||; a second pass on the embeddings W + r adds its gradient to the first one's
                 (Miyato et al. 2017, eqs. (3) and (4), on the weight as in the fast gradient method's usual code)
    ema          an average of the weights, e <- d e + (1 - d) w after each step, is what is evaluated and delivered;
                 d = min(ema, (1 + t) / (10 + t)) after t steps, so that a short run forgets its start
    r_drop       two passes with different dropout: the mean of their losses, plus r_drop times their divergence
                 (Wu et al. 2021, eq. (4); their code's mean of the two losses, so that the scale stays)
    layer_decay  the learning rate of a layer is that of the one above times layer_decay; head and pooler have it whole,
                 the embeddings least (Howard and Ruder 2018, section 3.2; ELECTRA's code)

The attack never touches the weight: it is added to what the embedding gives, which is the same number, so nothing has
to be restored, a checkpoint never holds it, and a decoder that is tied to the embeddings is not attacked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.functional import embedding, kl_div, log_softmax, mse_loss
from torch.utils.hooks import RemovableHandle

from keepfrac.errors import UserError
from keepfrac.models.anatomy import anatomy
from keepfrac.prune.masks import Masks

# R-Drop --------------------------------------------------------------------------------------------------------------


def _softmax_divergence(one: Tensor, other: Tensor) -> Tensor:
    p, q = log_softmax(one, -1), log_softmax(other, -1)
    both = (kl_div(p, q, reduction="batchmean", log_target=True), kl_div(q, p, reduction="batchmean", log_target=True))
    return (both[0] + both[1]) / 2


def _sigmoid_divergence(one: Tensor, other: Tensor) -> Tensor:
    """(KL(p || q) + KL(q || p)) / 2 of Bernoullis is (p - q) (logit p - logit q) / 2; mean over labels, as the loss."""
    return ((one.sigmoid() - other.sigmoid()) * (one - other)).mean() / 2


DIVERGENCES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "classification": _softmax_divergence,
    "multi_label": _sigmoid_divergence,
    "regression": mse_loss,
}


def divergence(one: Tensor, other: Tensor, problem: str) -> Tensor:
    """Returns the symmetric divergence of two passes over the same rows, a scalar >= 0.

    Args:
        one: logits (rows, outputs) of the first pass.
        other: of the second.
        problem: classification: KL of softmax, both ways, halved, mean over rows; multi_label: of Bernoullis, mean over
            rows and labels; regression: the squared difference.

    Raises:
        UserError: another kind of task.
    """
    return divergence_of(problem)(one.float(), other.float())


def divergence_of(problem: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Returns the divergence for a kind of task.

    Raises:
        UserError: there is none for it.
    """
    if problem not in DIVERGENCES:
        raise UserError(f"r_drop on a task of {problem}: it knows {', '.join(DIVERGENCES)}; set r_drop=null")
    return DIVERGENCES[problem]


def check_r_drop(head: str, problem: str) -> None:
    """Refuses R-Drop on a task without logits for a whole text.

    Raises:
        UserError: names what it is for.
    """
    divergence_of(problem if head == "sequence_classification" else head)


def refuse_without_dropout(net: Any) -> None:
    """Refuses R-Drop where two passes are one.

    Raises:
        UserError: the model has no dropout.
    """
    rates = [value for key, value in net.config.to_dict().items() if "drop" in key]
    if not any(isinstance(rate, float | int) and rate > 0 for rate in rates):
        raise UserError("r_drop compares two passes with different dropout, and this model has none: set r_drop=null")


# learning rate by depth ----------------------------------------------------------------------------------------------


def depths(net: nn.Module) -> dict[nn.Parameter, int]:
    """Returns how deep each parameter of a model lies: embeddings 0, layer i (from 1) i, all else one more.

    Embeddings are whatever the encoder holds before its first layer: GPT-2 has two tables there and no module of them.
    """
    parts = anatomy(net)
    places = {f"{parts.embeddings}.": 0} | {f"{layer.path}.": i for i, layer in enumerate(parts.layers, 1)}
    base = f"{parts.base}." if parts.base else ""
    top = len(parts.layers) + 1
    found: dict[nn.Parameter, int] = {}
    before = bool(parts.layers)
    for name, parameter in net.named_parameters():
        depth = next((depth for start, depth in places.items() if name.startswith(start)), None)
        before = before and not depth
        found[parameter] = depth if depth is not None else 0 if before and name.startswith(base) else top
    return found


def by_depth(groups: Sequence[dict[str, Any]], net: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Divides parameter groups by depth and lowers their rates: lr decay^(layers + 1 - depth).

    Args:
        groups: of an optimizer, with lr; parameters that are not the model's keep their rate.
        net: the model.
        decay: factor from one layer to the one below, in (0, 1].
    """
    depth_of = depths(net)
    top = len(anatomy(net).layers) + 1
    divided = []
    for group in groups:
        found: dict[int, list] = {}
        for parameter in group["params"]:
            found.setdefault(depth_of.get(parameter, top), []).append(parameter)
        divided += [
            {**group, "params": found[depth], "lr": group["lr"] * decay ** (top - depth)}
            for depth in sorted(found, reverse=True)
        ]
    return divided


# the average of the weights ------------------------------------------------------------------------------------------


class EMA:
    """An exponential moving average of a model's parameters.

    Args:
        net: the model; its present weights are where the average begins.
        decay: d, in (0, 1).
    """

    def __init__(self, net: nn.Module, decay: float):
        self.decay, self.steps = decay, 0
        self.values = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
        self._own: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        """Moves the average towards the weights: after each optimizer step."""
        self.steps += 1
        rate = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        for name, parameter in net.named_parameters():
            self.values[name] = self.values[name].to(parameter.device).lerp_(parameter, rate)

    def prune(self, masks: Mapping[str, Tensor]) -> None:
        """Zeroes what masks leave out of parameters, by name: an average forgets only slowly."""
        for name, mask in masks.items():
            self.values[name] = self.values[name] * mask.to(self.values[name].device)

    @torch.no_grad()
    def swap_in(self, net: nn.Module, masks: Masks | None) -> None:
        """Gives the model its average, zero where its masks are, until `restore`."""
        self._own = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
        for name, parameter in net.named_parameters():
            parameter.copy_(self.values[name])
        if masks is not None:
            masks.apply_to(net)

    @torch.no_grad()
    def restore(self, net: nn.Module) -> None:
        """Gives the model its own weights back, bit for bit."""
        for name, parameter in net.named_parameters():
            parameter.copy_(self._own.pop(name))

    def state_dict(self) -> dict:
        """Returns what a checkpoint holds of it."""
        return {"steps": self.steps, "values": self.values}

    def load_state_dict(self, state: Mapping) -> None:
        """Takes over what `state_dict` returned."""
        self.steps, self.values = state["steps"], dict(state["values"])


# the attack ----------------------------------------------------------------------------------------------------------


class FGM:
    """The fast gradient method on a model's word embeddings.

    Args:
        eps: length of the attack, ||r||, > 0.
    """

    def __init__(self, eps: float):
        self.eps = eps
        self.gradient: Tensor | None = None
        self._handle: RemovableHandle | None = None

    def watch(self, net: nn.Module) -> None:
        """Keeps the gradient that the next backward pass gives the word embeddings: before that pass.

        Raises:
            UserError: they are not trained, so that no gradient reaches them.
        """
        weight = _words(net).weight
        if not weight.requires_grad:
            raise UserError("fgm attacks the word embeddings, and here they are not trained: set fgm=null")
        self.gradient = None
        self._handle = weight.register_hook(self._keep)

    def _keep(self, gradient: Tensor) -> None:
        self.gradient = gradient.detach()

    @contextmanager
    def on(self, net: nn.Module) -> Iterator[None]:
        """Adds eps g / ||g|| to the word embeddings within the block."""
        assert self._handle is not None and self.gradient is not None, "watch(net) and a backward pass come first"
        self._handle.remove()
        words, shift = _words(net), fgm_direction(mean_over_processes(self.gradient), self.eps)

        def attacked(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
            return output + embedding(args[0], shift).to(output.dtype)

        handle = words.register_forward_hook(attacked)
        try:
            yield
        finally:
            handle.remove()
            self._handle = self.gradient = None


def fgm_direction(gradient: Tensor, eps: float) -> Tensor:
    """Returns eps g / ||g||; zeros where there is no direction."""
    norm = gradient.norm()
    usable = torch.isfinite(norm) & (norm > 0)
    return torch.where(usable, gradient * (eps / norm), torch.zeros_like(gradient))


def add_gradients(loss: Tensor, parameters: Sequence[nn.Parameter], synchronise: bool) -> None:
    """Adds the gradients of `loss` to those that are there.

    Args:
        loss: a scalar.
        parameters: of the optimizer.
        synchronise: whether they become means over the processes first, as those that are there already are.
    """
    if not (synchronise and _together()):
        loss.backward()
        return
    before = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    loss.backward()
    for parameter, gradient in zip(parameters, before, strict=True):
        if parameter.grad is not None:
            parameter.grad = mean_over_processes(parameter.grad)
        if gradient is not None:
            parameter.grad = gradient if parameter.grad is None else gradient.add_(parameter.grad)


def mean_over_processes(tensor: Tensor) -> Tensor:
    """Returns the mean of a tensor over the processes of the run."""
    if not _together():
        return tensor
    total = tensor.clone()
    distributed.all_reduce(total)
    return total / distributed.get_world_size()


def _together() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def _words(net: Any) -> nn.Embedding:
    """The word embeddings: the input embeddings' weight, whatever its name."""
    return net.get_input_embeddings()
