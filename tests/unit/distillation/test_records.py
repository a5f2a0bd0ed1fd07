"""How a teacher stands in reports and in a run's lineage."""

from types import SimpleNamespace

import pytest
import torch

from keepfrac.distillation.examine import check_order
from keepfrac.errors import UserError
from keepfrac.run import lineage
from keepfrac.storage import results
from tests.unit.distillation.test_losses import GOOD
from tests.unit.reporting.test_report import arms_of, cell


def test_a_teacher_makes_an_arm_that_is_called_by_its_preset(tmp_path):
    off, none = GOOD | {"teacher": None}, {"name": "none", "teacher": "somewhere"}
    found = arms_of(
        tmp_path,
        cell("nosp", test=0.9),
        cell("nosp", test=0.9, seed=1, **{"config.distill": off}),
        cell("distill_prune", keep=0.05, **{"config.distill": none}),
        cell("distill_prune", keep=0.05, test=0.8, **{"config.distill": GOOD}),
        cell("distill_prune", keep=0.05, test=0.7, **{"config.distill": GOOD | {"w_att": 0.0}}),
    )
    assert len({(arm.task, arm.setup) for arm in found}) == 1  # one table, beside the dense baseline
    assert found[0].method == "nosp" and found[0].seeds == (0, 1)
    plain, without, whole = sorted(found[1:], key=lambda arm: len(arm.variant))
    assert plain.variant == "" and plain.difference.n == 1
    assert without.variant == "distill.name=tinybert distill.w_att=0.0"
    assert whole.variant == "distill.name=tinybert distill.w_att=1.0"


@pytest.mark.parametrize("by_model_folder", [False, True])
def test_a_student_inherits_what_its_teacher_was_tuned_on(tmp_path, by_model_folder):
    results.write(tmp_path, {"status": "done", "provenance": {"trained_on": ["stsb"]}})
    (tmp_path / "model").mkdir()
    name = str(tmp_path / "model" if by_model_folder else tmp_path)
    model, distill = SimpleNamespace(run=None, name="m/m"), GOOD | {"teacher": name}
    settings = SimpleNamespace(task={"name": "mrpc"}, model=model, epochs=1, distill=distill)
    assert lineage.trained_on(settings, SimpleNamespace(name="mrpc", overlaps=[])) == ["mrpc", "stsb"]
    with pytest.raises(UserError, match=r"on which the teacher .* was tuned"):
        lineage.trained_on(settings, SimpleNamespace(name="other", overlaps=["stsb"]))
    settings.epochs = 0
    assert lineage.trained_on(settings, SimpleNamespace(name="mrpc", overlaps=["stsb"])) == []


def test_the_order_of_labels_is_judged_by_what_fits():
    true = torch.arange(300) % 3
    check_order(true, true, ("a", "b", "c"))
    check_order(torch.zeros(300, dtype=torch.long), true, ("a", "b", "c"))  # bad, but not by its order
    with pytest.raises(UserError, match=r"0.000 with its labels as a, b, c, and 1.000 as c, a, b"):
        check_order((true + 1) % 3, true, ("a", "b", "c"))
    check_order(torch.tensor([1, 0]), torch.tensor([0, 1]), ("a", "b"))  # two rows say nothing
