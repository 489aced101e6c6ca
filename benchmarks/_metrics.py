"""Metrics of probabilistic classification, shared by the accuracy benchmarks."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import f1_score

NLL_FLOOR = 1e-9
"""Probabilities are clipped here before the logarithm, for every method alike."""


def _check(y: np.ndarray, proba: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Validate codes and probabilities; return them as arrays (probabilities in float64)."""
    y, proba = np.asarray(y), np.asarray(proba, dtype=np.float64)
    if proba.ndim != 2 or y.shape != proba.shape[:1] or not len(y):
        raise ValueError(f"expected codes (n,) and probabilities (n, K) with n > 0, found {y.shape} and {proba.shape}")
    if not np.issubdtype(y.dtype, np.integer) or y.min() < 0 or y.max() >= proba.shape[1]:
        raise ValueError(f"class codes must be integers in [0, {proba.shape[1]})")
    if not np.isfinite(proba).all() or (proba < 0).any() or not np.allclose(proba.sum(1), 1.0, atol=1e-3):
        raise ValueError("probabilities must be finite, non-negative and sum to one in every row")
    return y, proba


def accuracy(y: np.ndarray, proba: np.ndarray) -> float:
    """Fraction of cells whose most probable class is the true one."""
    y, proba = _check(y, proba)
    return float((proba.argmax(1) == y).mean())


def macro_f1(y: np.ndarray, proba: np.ndarray) -> float:
    """Unweighted mean of the per-class F1 over the classes that have test cells.

    A class of the training data without a test cell has no recall and is left out of the mean; cells wrongly called
    such a class still lower the recall of their own class.
    """
    y, proba = _check(y, proba)
    return float(f1_score(y, proba.argmax(1), labels=np.unique(y), average="macro", zero_division=0))


def nll(y: np.ndarray, proba: np.ndarray, *, floor: float = NLL_FLOOR) -> float:
    """Mean negative log-probability of the true class, in nats, with probabilities clipped at ``floor``."""
    y, proba = _check(y, proba)
    return float(-np.log(np.clip(proba[np.arange(len(y)), y], floor, 1.0)).mean())


def brier(y: np.ndarray, proba: np.ndarray) -> float:
    """Mean squared distance between probability vector and one-hot truth, summed over classes (0 to 2)."""
    y, proba = _check(y, proba)
    return float(((proba - np.eye(proba.shape[1])[y]) ** 2).sum(1).mean())


def ece(y: np.ndarray, proba: np.ndarray, *, n_bins: int = 15) -> float:
    """Expected calibration error of the maximum probability, with equal-width bins ``(low, high]``.

    Notes
    -----
    Guo et al. 2017, "On calibration of modern neural networks", eq. 3: ``sum_b n_b / n |accuracy_b - confidence_b|``.
    """
    y, proba = _check(y, proba)
    confidence, hit = proba.max(1), proba.argmax(1) == y
    bins = np.clip(np.ceil(confidence * n_bins).astype(int) - 1, 0, n_bins - 1)
    gap = np.bincount(bins, weights=hit - confidence, minlength=n_bins)
    return float(np.abs(gap).sum() / len(y))


def evaluate(y: np.ndarray, proba: np.ndarray) -> dict[str, float]:
    """All metrics of one prediction.

    Parameters
    ----------
    y
        True class codes, shape (n,), in ``0..K-1``.
    proba
        Class probabilities, shape (n, K), rows sum to one.

    Returns
    -------
    ``accuracy``, ``macro_f1``, ``nll`` (nats), ``ece`` (15 bins) and ``brier``.
    """
    return {f.__name__: f(y, proba) for f in (accuracy, macro_f1, nll, ece, brier)}
