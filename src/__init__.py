"""The commands: `python -m src.main`, `src.report`, `src.measure`, `src.sync`, `src.dashboard`; see `keepfrac`.

It is imported from this folder whether it is installed or not. What was `src.<module>` once is found under that name
still: results and configurations of earlier versions name it, and so may what people type.
"""

import sys
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

if (_here := str(Path(__file__).resolve().parent)) not in sys.path:
    sys.path.insert(0, _here)

from keepfrac.storage.moved import today


class _Earlier(MetaPathFinder):
    """Finds `src.a.b` where it is today; a command of this folder is found before this finder is asked."""

    def find_spec(self, name: str, path=None, target=None) -> ModuleSpec | None:
        if not name.startswith("src.") or (new := today(name)) == name:
            return None
        found = find_spec(new)
        if found is None or found.loader is None:
            return None
        is_package = found.submodule_search_locations is not None
        return ModuleSpec(name, _Same(new), origin=found.origin, is_package=is_package)


class _Same(Loader):
    """Loads the module of another name: one object under two names."""

    def __init__(self, name: str):
        self.name = name

    def create_module(self, spec: ModuleSpec):
        module = import_module(self.name)
        self.spec = module.__spec__
        return module

    def exec_module(self, module) -> None:
        module.__spec__ = self.spec  # the import system has put that of the other name there

    def get_code(self, name: str):
        """Returns the code of the module itself, for `python -m`."""
        found = find_spec(self.name)
        assert found is not None and found.loader is not None
        return found.loader.get_code(self.name)  # type: ignore[attr-defined]


sys.meta_path.append(_Earlier())
