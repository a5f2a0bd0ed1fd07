"""The baseline on a csv file: it learns words, chooses on validation, and leaves a cell that the report reads."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier

from keepfrac.baselines import tfidf
from keepfrac.baselines.tfidf import Linear, Settings, baseline_of, truth
from keepfrac.reporting.cells import FinishedRun, read_cell
from keepfrac.storage import results
from tests.contract.test_conf import CONF

WORDS = ("red", "blue", "green", "old", "new", "house")


@pytest.fixture
def run(tmp_path):
    """A function from settings of the task to the folder of a finished run of it."""
    draw = np.random.default_rng(0)
    lines = ["text,label"]
    for i in range(300):
        words = draw.choice(WORDS, 4)
        lines.append(f"{' '.join(words)} {i},{' '.join(sorted({*words} & {'red', 'blue'}))}")
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n")

    def make(**changes):
        task = yaml.safe_load((CONF / "task" / "csv.yaml").read_text())
        task |= {"train_file": str(tmp_path / "rows.csv"), "multi_label": True, "batch_size": 8}
        task |= {"eval_batch_size": 8, "seed": 0, "num_workers": 0} | changes
        folder = tmp_path / "sweep" / "nosp_k1"
        results.write(folder, {"status": "done", "config": {"task": task}})
        return folder

    return make


def test_logits_are_those_of_scikit_learns_one_against_the_rest():
    draw = np.random.default_rng(1)
    sentences = [" ".join(draw.choice(WORDS, 5)) for _ in range(120)]
    found = np.stack([["red" in s for s in sentences], ["old new" in s for s in sentences]], 1).astype(int)
    model = Linear(2, 10.0).fit(sentences, found)
    features = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\S+", sublinear_tf=True)
    expected = OneVsRestClassifier(LogisticRegression(C=10.0, solver="liblinear")).fit(
        features.fit_transform(sentences), found
    )
    other = [" ".join(draw.choice(WORDS, 5)) for _ in range(30)]
    p = expected.predict_proba(features.transform(other))
    assert torch.allclose(model.logits(other).sigmoid(), torch.from_numpy(p), atol=1e-6)
    assert model.params == 2 * len(features.vocabulary_) + 2


def test_a_label_that_never_occurs_is_unlikely():
    model = Linear(1, 1.0).fit(["a b", "b c", "c d"], np.array([[0, 1], [0, 0], [0, 1]]))
    assert (model.logits(["a", "zebra"])[:, 0].sigmoid() < 0.2).all()


def test_it_leaves_a_cell_beside_the_run(run):
    folder = baseline_of(run(), Settings(1, False))
    cell = read_cell(folder)
    assert isinstance(cell, FinishedRun)
    assert (cell.method, cell.model, cell.task) == ("tfidf1", "tfidf", "csv")
    assert cell.test_score is not None and cell.test_score > 0.9
    assert "scaled_one_minus_mlogloss" in cell.test_scores
    assert cell.params and cell.command.startswith("python -m src.baselines.tfidf ")
    before = (folder / "results.json").read_text()
    assert baseline_of(run(), Settings(1, False)) == folder and (folder / "results.json").read_text() == before
    assert baseline_of(run(), Settings(1, True)) != folder


def test_c_is_chosen_on_validation_alone(run, monkeypatch):
    """The judge likes the smallest C on validation, the largest on test: the smallest is taken, test asked once."""
    asked = []

    def judged(model, task, split):
        asked.append((split, model.c))
        good = -model.c if split == "val" else model.c
        return {f"{split}/{name}": good for name in task.metric_names}

    monkeypatch.setattr(tfidf, "score", judged)
    found = json.loads((baseline_of(run(), Settings(1, False)) / "results.json").read_text())
    assert found["config"]["model"]["c"] == min(tfidf.CS)
    assert [c for split, c in asked if split == "test"] == [min(tfidf.CS)]


def test_one_label_per_row_is_judged_by_its_class(run, tmp_path):
    rows = [f"{'fine' if i % 2 else 'dull'} {i},{i % 2}" for i in range(200)]
    (tmp_path / "rows.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    folder = baseline_of(run(multi_label=False), Settings(1, False))
    assert json.loads((folder / "results.json").read_text())["scores"]["test/accuracy"] == 1.0


def test_truth_of_classes_and_of_sets():
    from keepfrac.tasks.rows import Rows

    assert truth(Rows({"label": [1, 0]}), 2).tolist() == [[0, 1], [1, 0]]
    assert truth(Rows({"label": [[0, 1], []]}), 2).tolist() == [[1, 1], [0, 0]]


def test_the_command_says_what_is_wrong(run, tmp_path, capsys):
    assert tfidf.main([str(tmp_path / "nowhere")]) == 1
    assert "not the folder of a finished run" in capsys.readouterr().err
    assert tfidf.main([str(run(problem="regression", multi_label=False, labels=None))]) == 1
    assert "allowed are classification and multi_label" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "sweep")
    assert tfidf.main([str(run()), "--words", "1"]) == 0
    assert capsys.readouterr().out.startswith("tfidf1 (C=")
