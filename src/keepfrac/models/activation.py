"""The choice of a model's activation.

`relu_inplace` overwrites its input. What is saved is the same; only the one transient copy between the linear in front
and the activation is spared.
"""

from torch import nn

from keepfrac.errors import UserError
from keepfrac.models.anatomy import anatomy
from keepfrac.tensors.surgery import replace

ACTIVATIONS = {"gelu": (nn.GELU, {}), "relu": (nn.ReLU, {}), "relu_inplace": (nn.ReLU, {"inplace": True})}


def use_activation(net: nn.Module, name: str) -> None:
    """Gives every layer of `net` the activation `name`, and writes it into the model's config.

    The config of the model says `relu` for `relu_inplace`, which other programs do not know.

    Args:
        net: a Transformers model that `anatomy` knows.
        name: gelu | relu | relu_inplace.

    Raises:
        UserError: another name.
    """
    if name not in ACTIVATIONS:
        raise UserError(f"hidden_act={name!r}: choose one of {', '.join(ACTIVATIONS)}")
    make, arguments = ACTIVATIONS[name]
    parts = anatomy(net)
    for layer in parts.layers:
        if layer.activation is not None:
            replace(net, layer.activation, make(**arguments))
    setattr(net.config, parts.family.function, name.removesuffix("_inplace"))
