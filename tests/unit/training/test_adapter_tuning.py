"""The scores of a model before its updates are merged."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from keepfrac.tasks.base import Task
from keepfrac.tasks.metrics import multi_label, scores
from keepfrac.training.adapter_tuning import scores_of

LABELS = 3


def test_the_temperature_of_validation_serves_the_test():
    logits, truth = torch.randn(64, LABELS), (torch.rand(64, LABELS) > 0.5).float()
    batches = {"val": {"logits": logits, "labels": truth}, "test": {"logits": 2 * logits, "labels": 1 - truth}}
    task = SimpleNamespace(
        trainer=SimpleNamespace(testing=False),
        _as_test=False,
        val_dataloader=lambda: [batches["val"]],
        test_dataloader=lambda: [batches["test"]],
    )
    task.tested = lambda: Task.tested(task)
    metrics = scores.collection(multi_label.NAMES, "multi_label", LABELS, lambda: Task._is_tested(task))
    module = SimpleNamespace(
        _trainer=SimpleNamespace(precision_plugin=SimpleNamespace(val_step_context=nullcontext)),
        loop=SimpleNamespace(total_steps=1),
        device="cpu",
        task=task,
        val_metrics=metrics,
        eval=lambda: None,
        on_validation_epoch_start=metrics.reset,
        validation_step=lambda batch, index: metrics.update(batch["logits"], batch["labels"].int()),
    )
    found = scores_of(module)
    best = multi_label.fit_temperature(logits.double(), truth.double())
    assert found["val/temperature"] == found["test/temperature"] == pytest.approx(best)
    assert not task._as_test
