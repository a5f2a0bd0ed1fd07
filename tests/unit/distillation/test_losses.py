import pytest
import torch

from keepfrac.distillation.layers import layer_map
from keepfrac.distillation.losses import attention_loss, hidden_loss, labels_loss, logits_loss
from keepfrac.distillation.recipe import Recipe, recipe_of
from keepfrac.errors import UserError

MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])


def by_hand(student, teacher, places) -> torch.Tensor:
    rows = [torch.stack([(student[p] - teacher[p]).square() for p in row]).mean() for row in places]
    return torch.stack(rows).mean()


def test_attention_is_the_mean_over_pairs_of_real_tokens():
    student, teacher = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    places = [[(b, h, i, j) for h in range(3) for i in range(n) for j in range(n)] for b, n in ((0, 3), (1, 2))]
    torch.testing.assert_close(attention_loss(student, teacher, MASK, "masked"), by_hand(student, teacher, places))


def test_hidden_is_the_mean_over_real_tokens():
    student, teacher = torch.randn(2, 4, 5), torch.randn(2, 4, 5)
    places = [[(b, i, k) for i in range(n) for k in range(5)] for b, n in ((0, 3), (1, 2))]
    torch.testing.assert_close(hidden_loss(student, teacher, MASK, "masked"), by_hand(student, teacher, places))


@pytest.mark.parametrize("loss", ["attention", "hidden"])
def test_padding_contributes_nothing(loss):
    shape = (2, 3, 4, 4) if loss == "attention" else (2, 4, 5)
    student, teacher = torch.randn(shape, requires_grad=True), torch.randn(shape)
    of = attention_loss if loss == "attention" else hidden_loss
    value = of(student, teacher, MASK, "masked")
    (grad,) = torch.autograd.grad(value, student)
    changed = student.detach().clone()
    changed[0, ..., 3, :] = 1e6
    changed[1, ..., 2:, :] = -1e6
    if loss == "attention":
        changed[0, ..., 3] = 1e6
        changed[1, ..., 2:] = 1e6
        assert (grad[0, :, :, 3] == 0).all() and (grad[0, :, 3] == 0).all() and grad[0, :, :3, :3].abs().min() > 0
    else:
        assert (grad[0, 3] == 0).all() and (grad[1, 2:] == 0).all() and grad[0, :3].abs().min() > 0
    assert of(changed, teacher, MASK, "masked") == value


def test_padding_included_is_that_codes_mean_over_everything():
    """Scores of padded keys are 0 in both, and all entries count; hidden states count everywhere."""
    student, teacher = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    added = (1 - MASK)[:, None, None, :] * -10000.0
    own, other = (torch.where(s + added <= -100, 0.0, s + added) for s in (student, teacher))
    expected = torch.nn.functional.mse_loss(own, other)
    torch.testing.assert_close(attention_loss(student, teacher, MASK, "included"), expected)
    student, teacher = torch.randn(2, 4, 5), torch.randn(2, 4, 5)
    torch.testing.assert_close(
        hidden_loss(student, teacher, MASK, "included"), torch.nn.functional.mse_loss(student, teacher)
    )


def test_heads_of_another_number_are_compared_by_their_mean():
    student, teacher = torch.randn(2, 2, 4, 4), torch.randn(2, 3, 4, 4)
    mean = attention_loss(student.mean(1, keepdim=True), teacher.mean(1, keepdim=True), MASK, "masked")
    torch.testing.assert_close(attention_loss(student, teacher, MASK, "masked"), mean)


def test_a_batch_that_is_shared_out_has_the_loss_of_the_whole():
    for of, shape in ((attention_loss, (2, 3, 4, 4)), (hidden_loss, (2, 4, 5))):
        student, teacher = torch.randn(shape), torch.randn(shape)
        rows = [of(student[i : i + 1], teacher[i : i + 1], MASK[i : i + 1], "masked") for i in range(2)]
        torch.testing.assert_close(of(student, teacher, MASK, "masked"), torch.stack(rows).mean())


def test_logits():
    student, teacher = torch.randn(6, 3), torch.randn(6, 3)
    p, q = (teacher / 2).softmax(-1), (student / 2).softmax(-1)
    expected = 4 * (p * (p / q).log()).sum(-1).mean()
    torch.testing.assert_close(logits_loss(student, teacher, 2.0, "rows"), expected)
    torch.testing.assert_close(logits_loss(student, teacher, 2.0, "elements"), expected / 3)
    one, other = torch.randn(6, 1), torch.randn(6, 1)
    torch.testing.assert_close(logits_loss(one, other, 2.0, "rows"), (one - other).square().mean())
    assert labels_loss(teacher, teacher, 1.0) < labels_loss(-teacher, teacher, 1.0)


def test_sparseberts_logits_term_has_the_gradient_of_its_cross_entropy():
    student, teacher = torch.randn(6, 2, requires_grad=True), torch.randn(6, 2)
    released = (-teacher.softmax(-1) * student.log_softmax(-1)).mean()
    (expected,) = torch.autograd.grad(released, student)
    (own,) = torch.autograd.grad(logits_loss(student, teacher, 1.0, "elements"), student)
    torch.testing.assert_close(own, expected)


def test_layer_maps():
    assert layer_map("uniform", 12, 12) == list(range(1, 13))
    assert layer_map("uniform", 4, 12) == [3, 6, 9, 12]  # TinyBERT's g(m) = 3 m
    assert layer_map("uniform", 6, 2) == [1, 1, 1, 1, 2, 2]
    assert layer_map("last", 2, 6) == [5, 6]
    assert layer_map([2, 2], 2, 3) == [2, 2]
    for bad in ("first", [1], [1, 4], ["a", "b"]):
        with pytest.raises(UserError, match="layer_map"):
            layer_map(bad, 2, 3)
    with pytest.raises(UserError, match="it has 2"):
        layer_map("last", 6, 2)


GOOD = {
    "name": "tinybert", "teacher": "t", "start": "model", "w_att": 1.0, "w_rep": 1.0, "w_cls": 1.0, "w_label": 1.0,
    "temperature": 1.0, "layer_map": "uniform", "projection": False, "padding": "masked", "pad_to": None,
    "average": "rows", "teacher_mode": "eval", "head": "own",
}  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("w_att", -1), ("w_cls", "much"), ("w_label", None), ("temperature", 0), ("padding", "none"), ("pad_to", 0),
        ("start", "scratch"), ("teacher_mode", "on"), ("head", "gelu"), ("average", "batch"),
    ],
)  # fmt: skip
def test_a_bad_value_is_named(key, value):
    with pytest.raises(UserError, match=f"distill.{key}={'null' if value is None else value}: must be"):
        recipe_of(GOOD | {key: value})


def test_no_teacher_is_no_recipe():
    assert recipe_of(GOOD) == Recipe(**GOOD)
    assert recipe_of(GOOD | {"teacher": None}) is None
    assert recipe_of({"name": "none", "teacher": "t"}) is None
    assert recipe_of(None) is None
    with pytest.raises(UserError, match="without effect"):
        recipe_of(GOOD | {"w_att": 0, "w_rep": 0, "w_cls": 0})
