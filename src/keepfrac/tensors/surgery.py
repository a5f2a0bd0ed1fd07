"""Look up and replace submodules of a network by their dotted path; a path that leads nowhere is an error."""

from torch import nn

from keepfrac.errors import UserError


def find(net: nn.Module, path: str) -> nn.Module:
    """Returns the submodule of `net` at the dotted `path`.

    Raises:
        UserError: there is no such submodule.
    """
    try:
        return net.get_submodule(path)
    except AttributeError as error:
        raise UserError(f"{type(net).__name__} has no part {path!r}") from error


def replace(net: nn.Module, path: str, module: nn.Module) -> None:
    """Puts `module` at `path`, in place of what is there.

    Raises:
        UserError: there is no such submodule.
    """
    find(net, path)
    parent, _, name = path.rpartition(".")
    setattr(net.get_submodule(parent), name, module)
