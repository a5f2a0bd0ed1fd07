"""A teacher in a plain loop."""

import pytest
import torch
from torch.nn.functional import kl_div, log_softmax

import keepfrac
from keepfrac.errors import UserError
from tests.tiny import inputs, tiny

BATCH = {**inputs(), "labels": torch.tensor([0, 1, 2])}


def test_logits_are_the_formula_and_labels_give_the_own_loss():
    student, teacher = tiny(layers=2).train(), tiny().train()
    student.config.hidden_dropout_prob = 0
    student.eval()
    found = keepfrac.distillation_loss(student, teacher, BATCH, temperature=3.0)
    ours, theirs = (log_softmax(net(**inputs()).logits / 3, -1) for net in (student, teacher))
    wanted = 9 * kl_div(ours, theirs, log_target=True, reduction="batchmean")
    torch.testing.assert_close(found.loss, wanted)
    torch.testing.assert_close(found.outputs.loss, student(**BATCH).loss)
    (found.outputs.loss + found.loss).backward()
    assert all(p.grad is None for p in teacher.parameters()) and not teacher.training
    assert any(p.grad is not None for p in student.parameters())


def test_a_student_that_is_its_teacher_loses_nothing_and_a_cut_one_something():
    teacher = tiny()
    weights = {"logits": 1.0, "hidden": 1.0, "attention": 1.0}
    same = keepfrac.distillation_loss(tiny_copy(teacher), teacher, BATCH, **weights)
    assert set(same.terms) == set(weights) and float(same.loss.detach()) < 1e-8
    small = keepfrac.prune(teacher, keep_frac=0.5, by="magnitude")
    lost = keepfrac.distillation_loss(small, teacher, BATCH, **weights)
    assert all(float(term) > 0 for term in lost.terms.values())
    torch.testing.assert_close(lost.loss.detach(), sum(lost.terms.values()))


def tiny_copy(net):
    other = tiny()
    other.load_state_dict(net.state_dict())
    return other


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"logits": 0}, "one of them must be above 0"),
        ({"temperature": 0}, "temperature=0"),
        ({"hidden": 1.0, "layer_map": "first"}, "layer_map=first"),
        ({"batch": {"input_ids": inputs()["input_ids"]}}, "no attention_mask"),
    ],
)
def test_what_cannot_be_is_said(words, said):
    with pytest.raises(UserError, match=said):
        keepfrac.distillation_loss(tiny(), tiny(), **{"batch": BATCH, **words})
