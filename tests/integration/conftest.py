"""Runs made in this process, on a small csv file and the two-layer model."""

import random
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from keepfrac.run import identity

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "conf"
E2E = ROOT / "tests" / "fixtures" / "e2e"
GOOD, BAD = ("fine", "lovely", "great", "charming"), ("dull", "awful", "poor", "tedious")
FILLER = ("the", "film", "story", "acting", "music", "was", "a", "and", "plot", "seemed")


def sentences(count: int, seed: int) -> list[tuple[str, str]]:
    draw = random.Random(seed)
    rows = []
    for index in range(count):
        words = draw.choices(FILLER, k=draw.randint(3, 12))
        words.insert(draw.randrange(len(words)), draw.choice(GOOD if index % 2 else BAD))
        rows.append((" ".join(words), "good" if index % 2 else "bad"))
    return rows


@pytest.fixture(scope="session")
def csv_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name, count, seed in (("train", 96, 0), ("validation", 32, 1), ("test", 32, 2)):
        lines = ["text,label", *(f"{text},{label}" for text, label in sentences(count, seed))]
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def shared(csv_folder):
    """Returns a function from overrides to a resolved config of a run that ends in seconds.

    All tests of a session share its folder of runs: what one has run is done for the next.
    """
    identity.register()

    def compose_(*overrides: str):
        base = ["model=bert_tiny", "task=csv", "logger=csv", "hardware.precision=32-true", "hardware.threads=1"]
        base += [f"task.{name}_file={csv_folder}/{name}.csv" for name in ("train", "validation", "test")]
        base += ["name=test", "epochs=2", "batch_size=8", "lr=1e-3", "probe_steps=1"]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose("config", overrides=[*base, *overrides])

    return compose_


@pytest.fixture
def composed(shared, tmp_path, monkeypatch):
    """The same, with a folder of runs of the test's own: for tests that watch a run, or change what it left."""
    monkeypatch.setenv("KEEPFRAC_MULTIRUN", str(tmp_path / "multirun"))
    return shared


@pytest.fixture
def untrained(monkeypatch):
    """For runs that must end before training."""
    monkeypatch.setattr("keepfrac.training.finetune.FineTune.training_step", lambda *_: pytest.fail("it trained"))


@pytest.fixture(scope="session")
def teacher(shared, tmp_path_factory):
    """The folder of a teacher's run that has learnt the task."""
    from keepfrac.run.run import run

    with pytest.MonkeyPatch.context() as patch:  # not the folder of the test that asks first
        patch.setenv("KEEPFRAC_MULTIRUN", str(tmp_path_factory.mktemp("teacher")))
        cfg = shared("name=teacher", "epochs=5", "probe_steps=0", "seed=3")
        assert run(cfg)["scores"]["val/accuracy"] > 0.8
        return identity.cell(cfg).folder


SMALL = {
    "gpt2_tiny": ("model.config.n_embd=32", "model.config.n_positions=160"),
    "llama_tiny": ("model.config.hidden_size=32", "model.config.intermediate_size=64"),
}


@pytest.fixture
def e2e(tmp_path, monkeypatch):
    """Returns a function from overrides to a resolved config of a decoder's run that ends in seconds."""
    monkeypatch.setenv("KEEPFRAC_MULTIRUN", str(tmp_path / "multirun"))
    identity.register()

    def make(*overrides: str, model: str = "gpt2_tiny"):
        base = [f"model={model}", *SMALL[model], "task=e2e", f"task.data_dir={E2E}", "task.max_length=80"]
        base += ["task.max_new_tokens=24", "task.eval_examples=3", "task.beams=2", "logger=csv", "name=test"]
        base += ["hardware.precision=32-true", "hardware.threads=1", "steps=6", "batch_size=8", "eval_batch_size=2"]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose("config", overrides=[*base, "lr=1e-3", "probe_steps=0", *overrides])

    return make


@pytest.fixture
def masked(tmp_path, monkeypatch):
    """Returns a function from overrides to a resolved config of masked language modelling on lines of any length."""
    monkeypatch.setenv("KEEPFRAC_MULTIRUN", str(tmp_path / "multirun"))
    identity.register()
    lines = [f"a film of {'q' * (1 + 3 * i % 40)} was it {i}" for i in range(60)]
    (tmp_path / "texts.txt").write_text("\n".join(lines) + "\n")

    def make(*overrides: str):
        base = ["model=bert_tiny", "task=mlm", f"task.text_file={tmp_path}/texts.txt", "name=masked", "logger=csv"]
        base += ["hardware.precision=32-true", "hardware.threads=1", "epochs=1", "probe_steps=0"]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose("config", overrides=[*base, *overrides])

    return make
