"""Look up and replace submodules of a network by their dotted path.

Surgery that matches nothing is an error: a run whose method silently changed no layer would be a dense run under
another name.
"""

from collections.abc import Callable, Iterable

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


def matching(net: nn.Module, wanted: Callable[[str, nn.Module], bool]) -> list[str]:
    """Returns the paths of all submodules for which `wanted(path, module)` is true, in the order of the network.

    Raises:
        UserError: no submodule is wanted.
    """
    paths = [path for path, module in net.named_modules() if path and wanted(path, module)]
    if not paths:
        raise UserError(f"no part of {type(net).__name__} matches: nothing would be changed")
    return paths


def replace(net: nn.Module, path: str, module: nn.Module) -> None:
    """Puts `module` at `path`, in place of what is there.

    Raises:
        UserError: there is no such submodule.
    """
    find(net, path)
    parent, _, name = path.rpartition(".")
    setattr(net.get_submodule(parent), name, module)


def replace_all(net: nn.Module, paths: Iterable[str], make: Callable[[nn.Module], nn.Module]) -> list[str]:
    """Replaces each module at `paths` by `make(module)`; returns the paths.

    Raises:
        UserError: `paths` is empty or names no part.
    """
    changed = list(paths)
    if not changed:
        raise UserError(f"no part of {type(net).__name__} matches: nothing would be changed")
    for path in changed:
        replace(net, path, make(find(net, path)))
    return changed
