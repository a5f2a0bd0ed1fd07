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
        val_dataloader=lambda: [batches["val"]], test_dataloader=lambda: [batches["test"]], to_device=Task.to_device
    )
    calibration = multi_label.Calibration()
    module = SimpleNamespace(
        _trainer=SimpleNamespace(precision_plugin=SimpleNamespace(val_step_context=nullcontext)),
        loop=SimpleNamespace(total_steps=1),
        device="cpu",
        task=task,
        eval=lambda: None,
        validation_step=lambda batch, _: module.val_metrics.update(batch["logits"], batch["labels"].int()),
    )

    def start_scores(split):
        module.val_metrics = scores.collection(multi_label.NAMES, "multi_label", LABELS, split, calibration)

    module.start_scores = start_scores
    found = scores_of(module)
    best = multi_label.fit_temperature(logits.double(), truth.double())
    assert found["val/temperature"] == found["test/temperature"] == pytest.approx(best)
