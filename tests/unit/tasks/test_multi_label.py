"""Scores of several labels against scikit-learn and scipy, over batches, with labels that never occur."""

import math
import warnings

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from keepfrac.tasks.metrics import multi_label, scores

RNG = np.random.default_rng(0)
ROWS, LABELS = 300, 7


def case(name):
    truth = (RNG.random((ROWS, LABELS)) < np.linspace(0.05, 0.6, LABELS)).astype(float)
    logits = 3 * RNG.normal(size=truth.shape) + 2 * truth - 1
    if name == "ties":
        logits = logits.round()
    if name == "a label that never occurs":
        truth[:, 2] = 0
    if name == "a label that is neither true nor called":
        truth[:, 2], logits[:, 2] = 0, -5
    if name == "sure and wrong":
        logits = 200 * (0.5 - truth)
    return logits.astype(np.float32).astype(float), truth


CASES = ("random", "ties", "a label that never occurs", "a label that is neither true nor called", "sure and wrong")


def collection_of(labels, split, calibration):
    return scores.collection(multi_label.NAMES, "multi_label", labels, split, calibration)


def computed(logits, truth, parts=4):
    collection = collection_of(truth.shape[1], "val", multi_label.Calibration())
    for z, y in zip(np.array_split(logits, parts), np.array_split(truth, parts), strict=True):
        collection.update(torch.from_numpy(z).float(), torch.from_numpy(y).float())
    return {name: float(value) for name, value in collection.compute().items()}


def log_loss(logits, truth):
    p = np.clip(1 / (1 + np.exp(-logits)), 1e-15, 1 - 1e-15)
    return np.mean([sk.log_loss(truth[:, k], p[:, k], labels=[0, 1]) for k in range(truth.shape[1])])


@pytest.mark.parametrize("name", CASES)
def test_scores_are_those_of_scikit_learn(name):
    logits, truth = case(name)
    found, called = computed(logits, truth), logits > 0
    loss = log_loss(logits, truth)
    near = 2e-3 if name == "sure and wrong" else 1e-6  # the oracle's 1 - (1 - 1e-15) has lost three digits
    assert found["one_minus_mlogloss"] == pytest.approx(1 - loss, abs=near)
    assert found["legacy_one_minus_2mlogloss"] == pytest.approx(1 - 2 * loss, abs=near)
    for average in ("micro", "macro"):
        expected = sk.f1_score(truth, called, average=average, zero_division=0)
        assert found[f"f1_{average}"] == pytest.approx(expected)
    assert found["subset_accuracy"] == pytest.approx(sk.accuracy_score(truth, called))
    occurs = truth.any(0)
    expected = sk.average_precision_score(truth[:, occurs], logits[:, occurs], average="macro")
    assert found["map"] == pytest.approx(expected)


@pytest.mark.parametrize("name", CASES)
def test_calibration_error_is_that_of_the_bins_of_scikit_learn(name):
    logits, truth = case(name)
    p, y = 1 / (1 + np.exp(-logits.ravel())), truth.ravel()
    true, mean = calibration_curve(y, p, n_bins=multi_label.BINS, strategy="uniform")
    counts = np.histogram(p, bins=multi_label.BINS, range=(0, 1))[0]
    expected = np.sum(counts[counts > 0] * np.abs(true - mean)) / len(p)
    assert computed(logits, truth)["ece"] == pytest.approx(expected, abs=1e-6)


def test_the_temperature_is_the_best_one():
    logits, truth = case("random")
    found = computed(logits, truth)
    best = minimize_scalar(
        lambda t: log_loss(logits / t, truth), bounds=(0.1, 20), method="bounded", options={"xatol": 1e-9}
    )
    assert found["temperature"] == pytest.approx(best.x, rel=1e-4)
    assert found["scaled_one_minus_mlogloss"] == pytest.approx(1 - best.fun, abs=1e-6)
    assert found["scaled_one_minus_mlogloss"] > found["one_minus_mlogloss"] + 0.01
    assert found["scaled_ece"] < found["ece"]


def test_a_perfect_model_takes_the_lowest_temperature():
    _, truth = case("random")
    assert computed(2 * truth - 1, truth)["temperature"] == pytest.approx(multi_label.COLDEST, rel=1e-6)


def test_the_temperature_of_validation_serves_the_test():
    logits, truth = case("random")
    calibration = multi_label.Calibration()

    def scored(z, split):
        collection = collection_of(LABELS, split, calibration)
        collection.update(torch.from_numpy(z), torch.from_numpy(truth))
        return {name: float(value) for name, value in collection.compute().items()}

    validated = scored(logits, "val")
    tested = scored(2 * logits, "test")
    assert tested["temperature"] == validated["temperature"]
    expected = 1 - log_loss(2 * logits / validated["temperature"], truth)
    assert tested["scaled_one_minus_mlogloss"] == pytest.approx(expected, abs=1e-6)
    assert scored(2 * logits, "val")["temperature"] == pytest.approx(2 * validated["temperature"], rel=1e-6)


def test_no_label_at_all():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = computed(np.full((8, 3), -2.0), np.zeros((8, 3)))
    assert found["map"] == found["f1_micro"] == found["f1_macro"] == 0
    assert found["subset_accuracy"] == 1
    assert found["one_minus_mlogloss"] == pytest.approx(1 - math.log1p(math.exp(-2)))


def test_less_is_better_for_errors():
    assert {scores.direction(name) for name in ("one_minus_mlogloss", "map", "accuracy")} == {"max"}
    assert {scores.direction(name) for name in ("ece", "scaled_ece", "perplexity", "loss", "mse")} == {"min"}
