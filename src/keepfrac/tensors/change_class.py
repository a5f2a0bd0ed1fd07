"""Another class for a module that stays the same object: its parameters, their names and its hooks stay too."""

from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Change:
    """What was done to a module.

    Args:
        module: the module.
        stock: its class before.
        attributes: names that it was given.
    """

    module: nn.Module
    stock: type[nn.Module]
    attributes: tuple[str, ...]

    def undo(self) -> None:
        """Gives the module its class back, and takes the attributes off."""
        self.module.__class__ = self.stock
        for name in self.attributes:
            delattr(self.module, name)


def change_class(module: nn.Module, new: type[nn.Module], **attributes: Any) -> Change:
    """Makes a module one of the class `new`, which derives from its own; returns how to undo it.

    Args:
        module: changed in place.
        new: with another forward pass, and no parameters of its own.
        attributes: what that needs.
    """
    stock = type(module)
    assert issubclass(new, stock), f"{new.__name__} is no {stock.__name__}"
    module.__class__ = new
    for name, value in attributes.items():
        setattr(module, name, value)
    return Change(module, stock, tuple(attributes))
