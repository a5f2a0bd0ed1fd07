"""No value that a run leaves has changed: see golden.py."""

import json

import pytest

from tests.contract import golden

RECORDED = json.loads(golden.FILE.read_text())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KEEPFRAC_MULTIRUN", "")  # put back afterwards
        yield golden.Golden(tmp_path_factory.mktemp("golden"))


@pytest.fixture(scope="module")
def same_bits() -> bool:
    return golden.machine() == RECORDED["machine"]


def test_every_method_is_pinned(made):
    assert set(made.cells) == set(RECORDED["cells"])


@pytest.mark.parametrize("name", sorted(RECORDED["cells"]))
def test_a_run_leaves_what_it_left(made, same_bits, name):
    found, recorded = made.cells[name](), RECORDED["cells"][name]
    found = json.loads(json.dumps(found))
    assert found.get("identity") == recorded.get("identity")
    assert {key: found["kept"][key] for key in ("asked", "unit", "of")} == {
        key: recorded["kept"][key] for key in ("asked", "unit", "of")
    }
    if same_bits:
        assert found == recorded
    else:  # another kind of processor adds in another order
        assert set(found["scores"]) == set(recorded["scores"])
        assert found["kept"]["achieved"] == pytest.approx(recorded["kept"]["achieved"], abs=0.05)


def test_each_option_names_the_cell_it_named(made):
    found = golden.identities(made.files)
    assert {key: found[key] for key in RECORDED["identities"] if key in found} == {
        key: value for key, value in RECORDED["identities"].items() if key in found
    }
    assert len(found) >= 25
