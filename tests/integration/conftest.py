"""Runs made in this process, on a small csv file and the two-layer model."""

import random
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from keepfrac.run import identity

CONF = Path(__file__).resolve().parents[2] / "conf"
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


@pytest.fixture
def composed(csv_folder, tmp_path, monkeypatch):
    """Returns a function from overrides to a resolved config of a run that ends in seconds."""
    monkeypatch.setenv("KEEPFRAC_MULTIRUN", str(tmp_path / "multirun"))
    identity.register()

    def compose_(*overrides: str):
        base = [
            "model=bert_tiny",
            "task=csv",
            f"task.train_file={csv_folder}/train.csv",
            f"task.validation_file={csv_folder}/validation.csv",
            f"task.test_file={csv_folder}/test.csv",
            "logger=csv",
            "hardware.precision=32-true",
            "hardware.threads=1",
            "name=test",
            "epochs=2",
            "batch_size=8",
            "lr=1e-3",
            "probe_steps=1",
        ]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose("config", overrides=[*base, *overrides])

    return compose_


@pytest.fixture(scope="session")
def teacher(csv_folder, tmp_path_factory):
    """The folder of a teacher's run that has learnt the task."""
    identity.register()
    files = [
        f"task.{key}_file={csv_folder}/{name}.csv"
        for key, name in (("train", "train"), ("validation", "validation"), ("test", "test"))
    ]
    words = ["model=bert_tiny", "task=csv", *files, "logger=csv", "hardware.precision=32-true", "name=teacher"]
    words += ["hardware.threads=1", "epochs=5", "batch_size=8", "lr=1e-3", "probe_steps=0", "seed=3"]
    with pytest.MonkeyPatch.context() as patch, initialize_config_dir(str(CONF), version_base="1.3"):
        patch.setenv("KEEPFRAC_MULTIRUN", str(tmp_path_factory.mktemp("teacher")))
        cfg = compose("config", overrides=words)
        from keepfrac.run.run import run

        assert run(cfg)["scores"]["val/accuracy"] > 0.8
        return identity.cell(cfg).folder
