"""What a user's own class does wrong is said with the line of its file that is to be mended."""

import re
import sys

import pytest

from keepfrac.errors import UserError
from keepfrac.run import command_line
from keepfrac.storage.build import build, build_target
from keepfrac.storage.foreign import own_line, told

METHOD = """\
from keepfrac.training.loop import LoopSettings


class Mine:
    def __init__(self, net):
        self.net = net

    def prepare(self):
        return {}['head']

    def call(self):
        return LoopSettings.of({"nothing": 1})
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Writes a module of the user's own, which can be imported as my_method."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)

    def write(code):
        (tmp_path / "my_method.py").write_text(code)
        sys.modules.pop("my_method", None)
        return "my_method.Mine"

    yield write
    sys.modules.pop("my_method", None)


def test_an_error_in_a_hook_names_its_line_and_nothing_of_hydra(own):
    mine = build_target(own(METHOD))(net=None)
    with pytest.raises(KeyError) as caught:
        mine.prepare()
    said = command_line.foreign_error(caught.value)
    assert said == "KeyError: 'head' (my_method.py:9, in prepare: return {}['head'])"


def test_an_error_that_its_call_brought_about_names_the_call(own):
    mine = build_target(own(METHOD))(net=None)
    with pytest.raises(UserError) as caught:
        mine.call()
    assert own_line(caught.value).startswith("my_method.py:12, in call: return LoopSettings.of(")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("class Mine\n    pass\n", "SyntaxError: expected ':' (my_method.py:1: class Mine)"),
        ("\nX = {}['a']\n", "KeyError: 'a' (my_method.py:2: X = {}['a'])"),
    ],
)
def test_a_module_that_cannot_be_imported_names_its_line(own, code, said):
    path = own(code)
    with pytest.raises((SyntaxError, KeyError)) as caught:
        build_target(path)
    assert told(caught.value) == said
    wrapped = Exception("raised while resolving interpolation")  # as OmegaConf does it
    wrapped.__cause__ = caught.value
    assert command_line.one_line(wrapped) == said


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import nothing_here\n", "_target_=my_method.Mine: .*No module named 'nothing_here' (my_method.py:1: import"),
        ("class Nine: pass\n", "_target_=my_method.Mine: .*has no attribute 'Mine'"),
    ],
)
def test_what_the_target_lacks_is_said(own, code, said):
    path = own(code)
    with pytest.raises(UserError, match=said.replace("(", r"\(")):
        build_target(path)


@pytest.mark.parametrize(
    ("more", "said"), [({}, "missing a required argument: 'net'"), ({"net": 1}, "unexpected keyword argument 'name'")]
)
def test_a_constructor_that_takes_other_arguments_names_its_class(own, more, said):
    path = own(METHOD)
    with pytest.raises(UserError, match=rf"_target_={path}: .*{said}.*it is built from .*my_method.py:4\)"):
        build({"_target_": path, "name": 1}, **more)


def test_an_error_of_this_project_names_its_own_line():
    with pytest.raises(AttributeError) as caught:
        command_line.arranged([1])
    within = caught.value.with_traceback(caught.value.__traceback__.tb_next)  # without this file
    said = command_line.foreign_error(within)
    assert re.search(r"\(src/keepfrac/run/command_line.py:\d+; HYDRA_FULL_ERROR=1 shows where\)$", said)
