"""A run that is killed in the middle of an epoch, with dropout on, ends bitwise as the uninterrupted one."""

import json

import pytest
import torch
from safetensors.torch import load_file

from keepfrac.run import identity
from keepfrac.run.run import run
from keepfrac.training.checkpoint import CHECKPOINT

METHODS = ("nosp", "rand", "norm", "bkrz", "late")


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the program catches it."""


def kill_at(monkeypatch, step: int) -> None:
    from keepfrac.training.finetune import FineTune

    original = FineTune.training_step

    def training_step(self, batch, index):
        if self.global_step == step:
            raise Killed
        return original(self, batch, index)

    monkeypatch.setattr(FineTune, "training_step", training_step)


def delivered(cfg) -> dict[str, torch.Tensor]:
    return load_file(identity.cell(cfg).folder / "model" / "model.safetensors")


def check_killed_run_continues(whole, broken, monkeypatch) -> None:
    """Runs one without a break and one that is killed at its step 17 and typed again: the weights are equal."""
    run(whole)
    with monkeypatch.context() as patch:
        kill_at(patch, 17)
        with pytest.raises(Killed):
            run(broken)
    torch.manual_seed(12345)
    run(broken)
    weights, again = delivered(whole), delivered(broken)
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def outcome(cfg) -> tuple[dict, dict]:
    folder = identity.cell(cfg).folder
    return load_file(folder / "model" / "model.safetensors"), json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize("step", [5, 17])
@pytest.mark.parametrize("method", METHODS)
def test_killed_run_continues_bitwise(composed, monkeypatch, method, step):
    overrides = [f"method={method}", "checkpoint_every=3", "model.dropout=0.1", "eval_every=7"]
    whole = composed(*overrides, "name=whole")
    run(whole)
    broken = composed(*overrides, "name=broken")
    with monkeypatch.context() as patch:
        kill_at(patch, step)
        with pytest.raises(Killed):
            run(broken)
    folder = identity.cell(broken).folder
    assert (folder / CHECKPOINT).exists()
    torch.manual_seed(12345)  # a new process would not have the old one's random state either
    run(broken)
    weights, results = outcome(whole)
    again, results_again = outcome(broken)
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert results["scores"] == results_again["scores"]
    steps = [line.split(",")[:2] for line in (folder / "metrics.csv").read_text().splitlines()[1:]]
    assert steps == [
        line.split(",")[:2] for line in (identity.cell(whole).folder / "metrics.csv").read_text().splitlines()[1:]
    ]
    assert not (folder / CHECKPOINT).exists()
