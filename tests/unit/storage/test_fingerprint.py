"""What a hash of code follows, and what it does not."""

import sys
from types import ModuleType

import pytest

from keepfrac.storage import fingerprint


@pytest.fixture
def package(tmp_path, monkeypatch):
    for name in ("methods/norm.py", "reporting/tables.py", "errors.py", "methods/README.md", "sparse/late.cpp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    monkeypatch.setattr(fingerprint, "PACKAGE", tmp_path)
    yield tmp_path
    fingerprint._of_package.cache_clear()


def code(*modules: str) -> str:
    fingerprint._of_package.cache_clear()
    return fingerprint.fingerprint_of_code.__wrapped__(*modules)


@pytest.mark.parametrize(
    ("file", "follows"),
    [
        ("methods/norm.py", True),
        ("errors.py", True),
        ("sparse/late.cpp", True),
        ("reporting/tables.py", False),
        ("methods/README.md", False),
    ],
)
def test_a_change_of_what_makes_results_changes_it(package, file, follows):
    before = code()
    (package / file).write_text("changed")
    assert (code() != before) == follows


def test_a_moved_file_changes_it(package):
    before = code()
    (package / "methods/norm.py").rename(package / "methods/rand.py")
    assert code() != before


def test_a_process_keeps_the_code_that_it_began_with(package):
    code()
    before = fingerprint.fingerprint_of_code.__wrapped__()
    (package / "errors.py").write_text("edited while it runs")
    assert fingerprint.fingerprint_of_code.__wrapped__() == before != code()


def test_a_module_of_a_users_own_counts(package, tmp_path_factory, monkeypatch):
    file, module = tmp_path_factory.mktemp("own") / "mine.py", ModuleType("mine")
    file.write_text("one")
    module.__file__ = str(file)
    monkeypatch.setitem(sys.modules, "mine", module)
    before = code("mine")
    assert before != code()
    file.write_text("two")
    assert code("mine") != before
