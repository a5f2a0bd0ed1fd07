"""What tests of whole runs share: a kill, and what a run left."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from safetensors.torch import load_file

from keepfrac.run import identity
from keepfrac.run.run import run
from keepfrac.training.checkpoint_files import CHECKPOINT
from keepfrac.training.finetune import FineTune


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the program catches it."""


@contextmanager
def killed_at(step: int) -> Iterator[None]:
    """Within it a run ends at the beginning of a step, as SIGKILL ends it."""
    original = FineTune.training_step

    def training_step(self, batch, index):
        if self.global_step == step:
            raise Killed
        return original(self, batch, index)

    FineTune.training_step = training_step
    try:
        yield
    except Killed:
        torch.manual_seed(12345)  # a new process would not have the old one's random state either
    else:
        raise AssertionError(f"the run ended before step {step}")
    finally:
        FineTune.training_step = original


def folder_of(cfg):
    """The folder of a configuration's run."""
    return identity.cell(cfg).folder


def weights_of(cfg) -> dict[str, torch.Tensor]:
    """The delivered weights."""
    return load_file(folder_of(cfg) / "model" / "model.safetensors")


def results_of(cfg) -> dict:
    """What results.json says."""
    return json.loads((folder_of(cfg) / "results.json").read_text())


def figures(folder) -> dict[str, list[float]]:
    """The columns of a run's metrics.csv by name."""
    found: dict[str, list[float]] = {}
    for line in (folder / "metrics.csv").read_text().splitlines()[1:]:
        _, name, value = line.split(",")
        found.setdefault(name, []).append(float(value))
    return found


def steps_of(cfg) -> list[list[str]]:
    """Which figure metrics.csv has of which step, in its order."""
    lines = (folder_of(cfg) / "metrics.csv").read_text().splitlines()[1:]
    return [line.split(",")[:2] for line in lines]


def check_resumes(whole, broken, *steps: int) -> None:
    """A run killed at each of some steps and typed again leaves what the uninterrupted one leaves, to the last bit."""
    run(whole)
    for step in steps:
        with killed_at(step):
            run(broken)
        assert (folder_of(broken) / CHECKPOINT).exists()
    run(broken)
    check_same(whole, broken)


def check_same(whole, broken) -> None:
    """Two finished runs left the same: weights and scores to the last bit, figures of metrics.csv, and files."""
    for path in sorted((folder_of(whole) / "model").glob("*.safetensors")):  # the weights, and masks where it has some
        one, two = load_file(path), load_file(folder_of(broken) / "model" / path.name)
        assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one), path.name
    one, two = results_of(whole), results_of(broken)
    assert one["scores"] == two["scores"] and timeless(one["kept"]) == timeless(two["kept"])
    assert one["delivered"] == two["delivered"]
    assert steps_of(whole) == steps_of(broken)
    assert timeless(figures(folder_of(whole))) == timeless(figures(folder_of(broken)))
    files = [{path.relative_to(folder) for path in folder.rglob("*")} for folder in map(folder_of, (whole, broken))]
    assert files[0] == files[1], "a kill left something"


def timeless(figures: dict) -> dict:
    """Figures but those that a clock gives."""
    return {key: value for key, value in figures.items() if "second" not in key}


def check_close(one, two, tolerance: float) -> None:
    """Two runs delivered the same weights, within a tolerance; 0: to the last bit."""
    weights, others = weights_of(one), weights_of(two)
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(others[name], weight, rtol=tolerance, atol=tolerance, msg=name)
