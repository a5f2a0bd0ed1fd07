"""pyproject.toml, constraints.txt and what src imports say the same."""

import ast
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


@pytest.fixture(scope="module")
def project(root: Path) -> dict:
    return tomllib.loads((root / "pyproject.toml").read_text())["project"]


def names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(line).name) for line in requirements}


def imported(file: Path) -> set[str]:
    """The top-level names that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add((node.module or "").split(".")[0])
    return found


def test_direct_dependencies_are_pinned_within_their_ranges(root: Path, project: dict):
    lines = (root / ".ci/constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    pins = {canonicalize_name(name): version for name, version in pairs}
    assert len(pins) == len(pairs)
    groups = project["optional-dependencies"].values()
    for requirement in map(Requirement, sum(groups, project["dependencies"])):
        version = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} against {version}"


def test_what_src_imports_is_declared(root: Path, project: dict):
    optional = set(sys.stdlib_module_names) | {"src", "keepfrac", "hydra_plugins", "__future__"}
    declared = names(sum(project["optional-dependencies"].values(), project["dependencies"]))
    owners = packages_distributions()
    for file in (root / "src").rglob("*.py"):
        for name in imported(file) - optional:
            assert {canonicalize_name(owner) for owner in owners.get(name, [name])} & declared, f"{file}: {name}"


def test_the_data_archives_are_never_imported(root: Path):
    lines = (root / ".ci/requirements-data.txt").read_text().splitlines()
    archives = {line.split("==")[0].replace("-", "_") for line in lines if "==" in line}
    assert len(archives) == 2
    for file in (root / "src").rglob("*.py"):
        assert not imported(file) & archives, file
