import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics as sk

from keepfrac.errors import UserError
from keepfrac.tasks.metrics import scores
from keepfrac.tasks.metrics.multi_label import Calibration

RNG = np.random.default_rng(0)
CASES = {
    "random": (RNG.integers(0, 2, 200), RNG.integers(0, 2, 200)),
    "perfect": (np.arange(50) % 2, np.arange(50) % 2),
    "all one class": (np.zeros(30, int), np.arange(30) % 2),
    "nothing positive": (np.zeros(30, int), np.zeros(30, int)),
    "perfect, one class": (np.ones(30, int), np.ones(30, int)),
}


def computed(names, problem, num_labels, preds, target, parts=3):
    collection = scores.collection(names, problem, num_labels, "val", Calibration())
    for piece, true in zip(np.array_split(preds, parts), np.array_split(target, parts), strict=True):
        collection.update(torch.from_numpy(piece), torch.from_numpy(true))
    return {name: float(value) for name, value in collection.compute().items()}


@pytest.mark.parametrize("case", CASES)
def test_binary_scores_are_those_of_scikit_learn(case):
    preds, target = CASES[case]
    found = computed(["accuracy", "f1", "acc_and_f1", "mcc"], "classification", 2, preds, target)
    accuracy, f1 = sk.accuracy_score(target, preds), sk.f1_score(target, preds, zero_division=0)
    assert found["accuracy"] == pytest.approx(accuracy)
    assert found["f1"] == pytest.approx(f1)
    assert found["acc_and_f1"] == pytest.approx((accuracy + f1) / 2)
    expected = sk.matthews_corrcoef(target, preds) if len({*target}) == 2 else 0.0
    assert found["mcc"] == pytest.approx(expected)


def test_scores_of_several_classes():
    preds, target = RNG.integers(0, 5, 300), RNG.integers(0, 5, 300)
    found = computed(["accuracy", "f1_macro"], "classification", 5, preds, target)
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(target, preds))
    assert found["f1_macro"] == pytest.approx(sk.f1_score(target, preds, average="macro"))


@pytest.mark.parametrize("ties", [False, True])
def test_correlations_are_those_of_scipy(ties):
    preds = RNG.normal(size=500).astype(np.float32)
    target = (preds + RNG.normal(size=500)).astype(np.float32)
    if ties:
        preds, target = preds.round(), target.round()
    found = computed(list(scores.REGRESSION), "regression", 1, preds, target)
    pearson, spearman = stats.pearsonr(preds, target)[0], stats.spearmanr(preds, target)[0]
    assert found["pearson"] == pytest.approx(pearson, abs=1e-6)
    assert found["spearman"] == pytest.approx(spearman, abs=1e-6)
    assert found["pearson_and_spearman"] == pytest.approx((pearson + spearman) / 2, abs=1e-6)
    assert found["mse"] == pytest.approx(sk.mean_squared_error(target, preds), rel=1e-5)


def test_correlation_with_a_constant_is_zero():
    found = computed(["pearson", "spearman"], "regression", 1, np.full(30, 0.1, np.float32), np.arange(30.0))
    assert found == {"pearson": 0.0, "spearman": 0.0}


def test_bf16_predictions_are_kept_in_float32():
    metric = scores.WholeSetScore(scores.pearson)
    metric.update(torch.tensor([1.0, 2.0], dtype=torch.bfloat16), torch.tensor([1.0, 2.0]))
    assert metric.preds[0].dtype == torch.float32


def test_a_metric_that_does_not_fit_is_an_error_that_lists_those_that_do():
    with pytest.raises(UserError, match="f1 is no metric of a classification of 3 classes; allowed are accuracy"):
        scores.collection(["f1"], "classification", 3, "val", Calibration())
    with pytest.raises(UserError, match="accuracy is no metric of a regression; allowed are pearson"):
        scores.check(["accuracy"], "regression")
