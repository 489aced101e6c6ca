"""Metric functions of the benchmarks against scikit-learn and against values worked out by hand."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, f1_score, log_loss


def _load() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "_metrics.py"
    spec = importlib.util.spec_from_file_location("benchmark_metrics", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


metrics = _load()


@pytest.fixture(params=[2, 3, 12])
def prediction(request: pytest.FixtureRequest) -> tuple[np.ndarray, np.ndarray]:
    """Codes and probabilities of 400 cells that are neither perfect nor independent."""
    rng, n_classes = np.random.default_rng(request.param), request.param
    y = np.concatenate([np.arange(n_classes), rng.integers(n_classes, size=400 - n_classes)])
    logits = rng.normal(size=(400, n_classes)) + 1.5 * np.eye(n_classes)[y]
    proba = np.exp(logits)
    return y, proba / proba.sum(1, keepdims=True)


def test_agree_with_sklearn(prediction: tuple[np.ndarray, np.ndarray]) -> None:
    """Accuracy, macro-F1 and NLL are scikit-learn's when every class has test cells."""
    y, proba = prediction
    assert metrics.accuracy(y, proba) == pytest.approx(accuracy_score(y, proba.argmax(1)))
    assert metrics.macro_f1(y, proba) == pytest.approx(f1_score(y, proba.argmax(1), average="macro"))
    assert metrics.nll(y, proba) == pytest.approx(log_loss(y, proba, labels=np.arange(proba.shape[1])), rel=1e-9)


def test_brier_is_the_sum_over_classes(prediction: tuple[np.ndarray, np.ndarray]) -> None:
    """Written out: ``sum_k p_k^2 - 2 p_true + 1``, averaged over cells."""
    y, proba = prediction
    expected = np.mean([sum(p**2 for p in row) - 2 * row[c] + 1 for c, row in zip(y, proba, strict=True)])
    assert metrics.brier(y, proba) == pytest.approx(expected)


def test_ece_agrees_with_calibration_curve(prediction: tuple[np.ndarray, np.ndarray]) -> None:
    """The gaps per bin are those of scikit-learn's reliability curve, weighted by the size of the bin."""
    y, proba = prediction
    confidence, hit = proba.max(1), proba.argmax(1) == y
    accuracy, mean_confidence = calibration_curve(hit, confidence, n_bins=15, strategy="uniform")
    size = np.histogram(confidence, np.linspace(0, 1, 16))[0]
    expected = (size[size > 0] / len(y) * np.abs(accuracy - mean_confidence)).sum()
    assert metrics.ece(y, proba) == pytest.approx(expected)


def test_hand_computed() -> None:
    """Four cells, two classes, every number from pencil and paper."""
    y = np.array([0, 0, 1, 1])
    proba = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.1, 0.9]])
    found = metrics.evaluate(y, proba)
    assert set(found) == {"accuracy", "macro_f1", "nll", "ece", "brier"}
    assert found["accuracy"] == pytest.approx(0.75)
    assert found["macro_f1"] == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert found["nll"] == pytest.approx(-np.log(0.9 * 0.4 * 0.8 * 0.9) / 4)
    assert found["brier"] == pytest.approx((0.02 + 0.72 + 0.08 + 0.02) / 4)
    # bins of 1/15: .6 alone, wrong (gap .6); .8 alone, right (gap .2); both .9 together, right (gap .1)
    assert found["ece"] == pytest.approx((0.6 + 0.2 + 2 * 0.1) / 4)


def test_ece_bins_are_closed_above() -> None:
    """A confidence on an edge belongs to the bin below it: with two bins, .5 and .6 do not share one."""
    y = np.array([1, 0])
    proba = np.array([[0.5, 0.5], [0.6, 0.4]])  # wrong at .5 (ties go to the first class), right at .6
    assert metrics.ece(y, proba, n_bins=2) == pytest.approx((0.5 + 0.4) / 2)
    assert metrics.ece(y, proba, n_bins=1) == pytest.approx(abs(1 - 1.1) / 2)


def test_nll_is_clipped() -> None:
    """A zero for the true class costs ``-log(1e-9)``, not infinity."""
    assert metrics.nll(np.array([0]), np.array([[0.0, 1.0]])) == pytest.approx(9 * np.log(10))


def test_perfect_and_constant_predictions() -> None:
    """The extremes: everything right with certainty, and the class frequencies for every cell."""
    y = np.array([0, 1, 2, 2])
    assert metrics.evaluate(y, np.eye(3)[y]) == {"accuracy": 1.0, "macro_f1": 1.0, "nll": 0.0, "ece": 0.0, "brier": 0.0}
    constant = np.tile([0.25, 0.25, 0.5], (4, 1))
    assert metrics.ece(y, constant) == pytest.approx(0.0)
    assert metrics.nll(y, constant) == pytest.approx(1.5 * np.log(2))


def test_class_without_test_cells_is_left_out_of_macro_f1() -> None:
    """A training class absent from the test side does not count as an F1 of zero, even when a cell is called it."""
    y = np.array([0, 0, 1, 1])
    proba = np.eye(3)[[0, 0, 1, 2]]
    assert metrics.macro_f1(y, proba) == pytest.approx((1 + 2 / 3) / 2)


@pytest.mark.parametrize(
    ("y", "proba", "match"),
    [
        ([0, 1], [[1.0, 0.0]], "expected codes"),
        ([], np.empty((0, 2)), "expected codes"),
        ([2], [[1.0, 0.0]], "class codes"),
        ([-1], [[1.0, 0.0]], "class codes"),
        ([0.0], [[1.0, 0.0]], "class codes"),
        ([0], [[0.5, 0.6]], "sum to one"),
        ([0], [[np.nan, 1.0]], "finite"),
        ([0], [[1.5, -0.5]], "non-negative"),
    ],
)
def test_bad_input_is_refused(y: list, proba: list, match: str) -> None:
    """Shapes, codes and probabilities that cannot be right raise before a number comes out."""
    with pytest.raises(ValueError, match=match):
        metrics.evaluate(np.asarray(y), np.asarray(proba))
