"""The exact ways to save memory: the same weights as dense to the bit, for fewer saved bytes."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from keepfrac.run import identity
from keepfrac.run.run import run


@pytest.fixture
def dense(shared):
    cfg = shared("method=nosp", "name=dense", "epochs=1", "model.dropout=0.1")
    return run(cfg), load_file(identity.cell(cfg).folder / "model" / "model.safetensors")


@pytest.mark.parametrize(("method", "share"), [("checkpoint", 0.5), ("recompute_gelu", 0.85)])
def test_the_run_is_the_dense_one(shared, dense, method, share):
    cfg = shared(f"method={method}", "epochs=1", "model.dropout=0.1", "keep_frac=0.3")
    found, folder = run(cfg), identity.cell(cfg).folder / "model"
    weights = load_file(folder / "model.safetensors")
    assert weights.keys() == dense[1].keys()
    assert all(torch.equal(weights[name], weight) for name, weight in dense[1].items())
    assert found["scores"] == dense[0]["scores"] and found["kept"]["achieved"] == 1.0
    cost = found["cost"]
    assert cost["saved_bytes_dense"] == dense[0]["cost"]["saved_bytes"]
    assert cost["saved_bytes"] < share * cost["saved_bytes_dense"]
    AutoModelForSequenceClassification.from_pretrained(folder)


def test_backrazor_saves_at_all_sites(shared):
    cfg = shared("method=backrazor", "keep_frac=0.2", "steps=2", "model.attention=eager")
    found = run(cfg)
    assert found["kept"]["achieved"] == pytest.approx(0.2, abs=0.01)
    bkrz = run(shared("method=bkrz", "keep_frac=0.2", "steps=2", "model.attention=eager"))
    assert found["cost"]["saved_bytes"] < bkrz["cost"]["saved_bytes"] < bkrz["cost"]["saved_bytes_dense"]
