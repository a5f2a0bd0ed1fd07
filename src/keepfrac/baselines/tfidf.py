"""TF-IDF and logistic regression as a baseline of a finished run: same rows, same splits, same metrics.

    python -m src.baselines.tfidf multirun/<name>/<cell> [--words 3] [--refit]

Runs of 1 to `--words` words, weighted by (1 + log tf) idf, and one logistic regression for each label, by scikit-learn.
Its C is the one of CS with the best score on validation; the test rows are scored once, with that one. It leaves a cell
of its own next to the run's, which `python -m src.report multirun/<name>` shows and records like any other.
"""

import hashlib
import json
import logging
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from keepfrac.errors import UserError
from keepfrac.storage import results
from keepfrac.storage.build import build
from keepfrac.storage.commands import Parser, complain
from keepfrac.storage.fingerprint import fingerprint_of_code
from keepfrac.storage.provenance import device_name, provenance
from keepfrac.tasks.base import Task
from keepfrac.tasks.rows import Rows

log = logging.getLogger(__name__)

CS = (1.0, 10.0, 100.0, 1000.0)
PROBLEMS = ("classification", "multi_label")


@dataclass(frozen=True)
class Settings:
    """What the baseline is.

    Args:
        words: most words of a run, >= 1.
        refit: whether the chosen model is fitted again on train and validation together.
    """

    words: int
    refit: bool

    @property
    def name(self) -> str:
        """As a method's name in results."""
        return f"tfidf{self.words}" + "_refit" * self.refit


def truth(rows: Rows, num_labels: int) -> np.ndarray:
    """Returns 0 and 1, (rows, labels), one 1 per row in a classification."""
    found = np.zeros((len(rows), num_labels))
    for row, label in enumerate(rows["label"]):
        found[row, label] = 1
    return found


def sentences_of(rows: Rows) -> list[str]:
    """Returns the text of each row; a pair is one text."""
    if "text_pair" not in rows:
        return rows["text"]
    return [f"{first} {second}" for first, second in zip(rows["text"], rows["text_pair"], strict=True)]


class Linear:
    """TF-IDF features and a logistic regression for each label.

    Args:
        words: most words of a run.
        c: the inverse strength of the l2 penalty, > 0.
    """

    def __init__(self, words: int, c: float):
        from sklearn.feature_extraction.text import TfidfVectorizer

        self.c = c
        self.features = TfidfVectorizer(
            ngram_range=(1, words), token_pattern=r"\S+", lowercase=False, sublinear_tf=True
        )

    def fit(self, sentences: list[str], found: np.ndarray) -> "Linear":
        """Fits all labels; one that is constant keeps the log odds of its share, smoothed by one row."""
        from sklearn.linear_model import LogisticRegression

        x = self.features.fit_transform(sentences)
        weights, biases = [], []
        for column in found.T:
            if 0 < column.sum() < len(column):
                one = LogisticRegression(C=self.c, solver="liblinear").fit(x, column)
                weights.append(one.coef_[0])
                biases.append(float(one.intercept_[0]))
            else:
                weights.append(np.zeros(x.shape[1]))
                biases.append(float(np.log((column.sum() + 0.5) / (len(column) - column.sum() + 0.5))))
        self.weights, self.biases = np.stack(weights, 1), np.array(biases)
        return self

    def logits(self, sentences: list[str]) -> torch.Tensor:
        """Returns the log odds of each label, (rows, labels)."""
        return torch.from_numpy(self.features.transform(sentences) @ self.weights + self.biases)

    @property
    def params(self) -> int:
        """How many numbers it has learnt."""
        return self.weights.size + self.biases.size


def score(model: Linear, task: Task, split: str) -> dict[str, float]:
    """Returns the scores of "val" or "test" by their full names, as the task's metrics give them."""
    rows, metrics = task.splits.named()[split], task.metrics(split)
    logits = model.logits(sentences_of(rows))
    if task.problem == "multi_label":
        metrics.update(logits, torch.from_numpy(truth(rows, task.num_labels)))
    else:
        metrics.update(logits.argmax(1), torch.tensor(rows["label"]))
    return {f"{split}/{name}": float(value) for name, value in metrics.compute().items()}


def chosen(task: Task, settings: Settings) -> tuple[Linear, dict[str, float]]:
    """Returns the model of the best C on validation, and its scores on validation and test."""
    train = task.splits.train
    sentences, found = sentences_of(train), truth(train, task.num_labels)
    sign = 1 if task.direction == "max" else -1
    tried = [Linear(settings.words, c).fit(sentences, found) for c in CS]
    scored = [score(model, task, "val") for model in tried]
    best = max(range(len(CS)), key=lambda i: sign * scored[i][f"val/{task.best_metric}"])
    model, validated = tried[best], score(tried[best], task, "val")  # again: its temperature is to serve the test
    if settings.refit:
        held_out = task.splits.validation
        found = np.concatenate([found, truth(held_out, task.num_labels)])
        model = Linear(settings.words, model.c).fit(sentences + sentences_of(held_out), found)
    return model, validated | score(model, task, "test")


def baseline_of(folder: Path, settings: Settings) -> Path:
    """Makes the baseline of a finished run's task, unless it is there; returns its folder.

    Raises:
        UserError: no finished run, or a task of another kind.
    """
    run = results.read(folder)
    if run is None or run["status"] != "done":
        raise UserError(f"{folder}: not the folder of a finished run")
    task = build(run["config"]["task"])
    if task.problem not in PROBLEMS or task.best_metric == "loss":
        raise UserError(
            f"{folder}: a {task.problem} chosen by {task.best_metric}; allowed are classification and multi_label,"
            " chosen by a metric"
        )
    facts = [settings.name, CS, task.fingerprint(), task.metric_names, task.best_metric]
    identity = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]
    own = folder.parent / f"{settings.name}_{task.name}-{identity[:8]}"
    if not results.is_done(own, identity):
        results.write(own, _record(folder, run, task, settings, identity))
    return own


def _record(folder: Path, run: dict, task: Task, settings: Settings, identity: str) -> dict:
    begin, made = time.monotonic(), provenance(0, [])
    model, found = chosen(task, settings)
    seconds = round(time.monotonic() - begin, 1)
    flags = f" --words {settings.words}" + " --refit" * settings.refit
    made |= {
        "command": f"python -m src.baselines.tfidf {folder}{flags}",
        "seconds": seconds,
        "device": device_name("cpu"),
        "fingerprints": {"code": fingerprint_of_code(), "data": task.fingerprint()[:16]},
        "data": task.describe(),
    }
    return {
        "status": "done",
        "error": None,
        "identity": identity,
        "config": {
            "name": folder.resolve().parent.name,
            "seed": 0,
            "task": run["config"]["task"],
            "model": {"name": "tfidf", "words": settings.words, "c": model.c},
            "method": {"name": settings.name, "keep_frac": 1.0},
        },
        "provenance": made,
        "best_metric": task.best_metric,
        "direction": task.direction,
        "scores": found,
        "kept": {"asked": 1.0, "achieved": 1.0, "unit": None, "of": "everything"},
        "size": {"params": model.params},
        "cost": {"train_seconds": seconds},
    }


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code: 1, with one line on stderr, where the user must act."""
    parser = Parser(prog="python -m src.baselines.tfidf", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="RUN", help="a finished run's folder, whose task is taken")
    parser.add_argument("--words", type=int, default=3, choices=range(1, 6), help="most words of a run")
    parser.add_argument("--refit", action="store_true", help="fit the chosen C again on train and validation")
    options = parser.parse_args(argv)
    try:
        folder = baseline_of(options.folder, Settings(options.words, options.refit))
    except ModuleNotFoundError as error:
        return complain(f"{error}: pip install -c .ci/constraints.txt 'scikit-learn' (make gaiic does it)")
    except UserError as error:
        return complain(error)
    found = results.read(folder)
    assert found is not None
    metric = found["best_metric"]
    shown = ", ".join(f"{split} {found['scores'][f'{split}/{metric}']:.4f}" for split in ("val", "test"))
    sys.stdout.write(
        f"{found['config']['method']['name']} (C={found['config']['model']['c']:g}): {metric} {shown}\n{folder}\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
