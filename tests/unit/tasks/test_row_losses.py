"""The loss of each row: it sums to the loss of the batch, and no other row has a part in it."""

from types import SimpleNamespace

import pytest
import torch

from keepfrac.tasks.generation import NO_LOSS
from tests.unit.tasks.test_generation import E2E


def rows_of(task, logits, labels):
    """Returns the losses of all rows at once, after they were held against those of each row by itself."""

    def losses(rows):
        return task.row_losses(SimpleNamespace(logits=logits[rows]), {"labels": labels[rows]})

    found = losses(slice(None))
    torch.testing.assert_close(found, torch.cat([losses(slice(i, i + 1)) for i in range(len(labels))]))
    return found, task.loss(SimpleNamespace(logits=logits), {"labels": labels})


@pytest.mark.parametrize("problem", ["classification", "regression", "multi_label"])
def test_of_texts_they_mean_to_the_loss(make_task, problem):
    task = make_task("csv")
    task.problem = problem
    labels = {
        "classification": torch.arange(6) % 5,
        "regression": torch.randn(6),
        "multi_label": (torch.rand(6, 5) < 0.4).float(),
    }
    found, loss = rows_of(task, torch.randn(6, 1 if problem == "regression" else 5), labels[problem])
    torch.testing.assert_close(found.mean(), loss)


def test_of_masked_tokens_they_are_sums(make_task):
    labels = torch.randint(0, 11, (4, 7)).masked_fill(torch.rand(4, 7) < 0.5, NO_LOSS)
    labels[2] = NO_LOSS  # nothing was masked
    found, loss = rows_of(make_task("mlm"), torch.randn(4, 7, 11), labels)
    torch.testing.assert_close(found.sum() / (labels != NO_LOSS).sum(), loss)
    assert found[2] == 0


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_of_texts_that_are_said_they_are_sums(make_task, smoothing):
    task = make_task("e2e", data_dir=str(E2E), max_length=48, max_new_tokens=16, label_smoothing=smoothing)
    labels = torch.randint(0, 11, (4, 7))
    labels[:, :3], labels[1, 5:] = NO_LOSS, NO_LOSS
    found, loss = rows_of(task, torch.randn(4, 7, 11), labels)
    torch.testing.assert_close(found.sum() / (labels[:, 1:] != NO_LOSS).sum(), loss)
