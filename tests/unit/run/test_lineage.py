"""A model that has seen another fold is refused; one of the same fold, or of another task, is not."""

from types import SimpleNamespace

import pytest

from keepfrac.errors import UserError
from keepfrac.run import lineage
from keepfrac.storage import results

GAIIC = {"name": "gaiic", "folds": 5, "fold": 1}


def settings(folder, task: dict) -> SimpleNamespace:
    """As much of RunSettings as is read."""
    model = SimpleNamespace(run=str(folder), name="from_run")
    return SimpleNamespace(model=model, task=task, epochs=0, distill={"name": "none"})


def ran(folder, former: dict, task: dict) -> SimpleNamespace:
    results.write(folder, {"status": "done", "config": {"task": former}, "provenance": {"trained_on": []}})
    return settings(folder, task)


@pytest.mark.parametrize(
    "former",
    [
        GAIIC | {"fold": 0},
        GAIIC | {"folds": None, "fold": None},
        GAIIC | {"folds": 4},
        {"name": "mlm", "of": GAIIC | {"fold": 2}},
        {"name": "mlm", "of": {"name": "gaiic"}},  # of a run before there were folds
    ],
)
def test_what_has_seen_this_test_set_is_refused(tmp_path, former):
    with pytest.raises(UserError, match=r"all stages need the same folds and fold"):
        lineage.trained_on(ran(tmp_path, former, GAIIC), SimpleNamespace(**GAIIC))


def test_what_has_seen_it_two_runs_ago_is_refused(tmp_path):
    ran(tmp_path / "first", GAIIC | {"fold": 0}, GAIIC)
    config = {"task": {"name": "sst2"}, "model": {"run": str(tmp_path / "first")}}
    results.write(tmp_path / "second", {"status": "done", "config": config, "provenance": {"trained_on": []}})
    with pytest.raises(UserError, match=r"all stages need the same folds and fold"):
        lineage.trained_on(settings(tmp_path / "second", GAIIC), SimpleNamespace(**GAIIC))


@pytest.mark.parametrize(
    ("former", "task"),
    [
        (GAIIC, GAIIC),
        ({"name": "mlm", "of": GAIIC}, GAIIC),
        ({"name": "mlm", "of": GAIIC}, {"name": "mlm", "of": GAIIC}),
        ({"name": "mlm", "of": None, "text_file": "a.txt"}, GAIIC),
        ({"name": "sst2"}, GAIIC),
        (GAIIC, {"name": "gaiic", "folds": None, "fold": None}),  # the given test is in no fold
        ({"name": "sst2"}, {"name": "sst2"}),
    ],
)
def test_what_has_not_is_taken(tmp_path, former, task):
    assert lineage.trained_on(ran(tmp_path, former, task), SimpleNamespace(**task)) == []


def test_runs_in_a_ring_are_refused(tmp_path):
    for name, other in (("a", "b"), ("b", "a"), ("c", "c")):
        config = {"task": {"name": "sst2"}, "model": {"run": str(tmp_path / other)}}
        results.write(tmp_path / name, {"status": "done", "config": config, "provenance": {"trained_on": []}})
        if name != "a":
            with pytest.raises(UserError, match=rf"model.run={tmp_path}.*in a ring"):
                lineage.trained_on(settings(tmp_path / name, GAIIC), SimpleNamespace(**GAIIC))
